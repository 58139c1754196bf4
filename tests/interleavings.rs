//! Four devices of three people write, sync, go away, are cut off and crash, in any order: in the end
//! all who hold the same keys have the same tables, what was written stands or was overwritten by what
//! came later, and what is one person's alone was never anywhere else.
//!
//! Everything is real: the app's file with its triggers, sealing, signing, numbering, chains, keys, the
//! outbox, snapshots, the relay and its store, and for some crashes a process that is killed. Who is
//! right is judged from outside ([`crate::support::verdict`]). What it has found stands at the end, each
//! as a promise of its own.

use parking_lot::Mutex;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Builder;

use crate::support::app::SHAPES;
use crate::support::family::{Family, Tally};
use crate::support::line::Fault;
use crate::support::needles::{contains, everything_in};
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::steps::{ADA, CLEO, PLANTED, SHARED, Step, Trouble, Write, any_step};
use crate::support::verdict::Verdict;

/// How many interleavings are tried, unless SEALWIRE_TEST_INTERLEAVINGS says otherwise. The devices are the
/// same on both databases, and PostgreSQL takes twice as long.
const fn cases(database: Database) -> u32 {
    match database {
        Database::Sqlite => 12,
        Database::Postgres => 6,
    }
}

/// Most steps of one of them.
const STEPS_MAX: usize = 60;

/// How long a failing one is made shorter, in milliseconds.
const SHRINKING_MS: u32 = 60_000;

impl Family {
    async fn everything_is_as_it_must_be(&mut self) {
        let mut verdict = Verdict::default();
        for phone in &mut self.phones {
            verdict.take(phone.person, phone.key, phone.app.noted());
        }
        verdict.causes_come_first();
        self.private_keys_stay_with_their_person();
        // First, for what is in a wrong place is missing in another.
        for phone in &self.phones {
            phone.holds_nothing_of_others();
        }
        for at in 0..self.phones.len() {
            assert_eq!(self.status(at).await.1, 0, "{at} has something unsent");
            let status = self.phones[at].running().await.status().await.expect("a status");
            let holds_key = status.vault.is_some_and(|vault| vault.holds_private_key);
            assert!(!holds_key || self.phones[at].person != CLEO, "{at} was given a key");
            let phone = &self.phones[at];
            for (table, shape) in SHAPES.iter().enumerate() {
                let (found, expected) = (phone.app.rows(shape), verdict.rows(phone.person, table));
                assert_eq!(found, expected, "{} on device {at}", shape.name);
            }
        }
    }

    /// Whoever comes last has the same.
    async fn newcomers_have_the_same(&mut self) {
        for by in [1, 2] {
            let new = self.add(self.phones[by].person).await;
            self.invite(by, new).await;
        }
        self.settle().await;
        self.everything_is_as_it_must_be().await;
    }

    async fn the_relay_holds_nothing(mut self) -> Tally {
        self.tally.compacted = u32::from(self.floor().await > 0);
        let planted = PLANTED.iter().chain([&SHARED]);
        let held = |bytes: &[u8]| planted.clone().any(|it| contains(bytes, it.as_bytes()));
        assert!(!self.line.has_carried(held), "something has travelled in the clear");
        self.world.stop().await;
        assert!(!held(&everything_in(self.world.place().data())), "the relay holds it");
        self.tally
    }
}

/// Does all of this, and checks what must be true in the end.
async fn all_is_well_after(database: Database, steps: Vec<Step>) -> Tally {
    let mut family = Family::gather(database).await;
    for step in steps {
        family.step(step).await;
    }
    family.settle().await;
    family.everything_is_as_it_must_be().await;
    family.newcomers_have_the_same().await;
    family.the_relay_holds_nothing().await
}

fn any_interleaving(database: Database) {
    let asked = std::env::var("SEALWIRE_TEST_INTERLEAVINGS").ok();
    let cases = asked.and_then(|text| text.parse().ok()).unwrap_or(cases(database));
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_time: SHRINKING_MS,
        ..Config::default()
    };
    let steps = proptest::collection::vec(any_step(), 1..STEPS_MAX);
    let all = Mutex::new(Tally::default());
    let tried = TestRunner::new(config).run(&steps, |steps| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let tally = runtime.expect("a runtime").block_on(all_is_well_after(database, steps));
        all.lock().add(tally);
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let all = all.into_inner();
    println!("{cases} interleavings: {all:?}");
    let busy = all.cut > 0 && all.crashed > 0 && all.compacted > 0;
    assert!(busy || cases < 6, "too little has happened");
}

mod four_devices_end_with_the_same_tables_lose_nothing_and_keep_what_is_private {
    use crate::support::place::Database;

    #[test]
    fn on_sqlite() {
        super::any_interleaving(Database::Sqlite);
    }

    #[test]
    fn on_postgres() {
        super::any_interleaving(Database::Postgres);
    }
}

// ---- what was found by it

on_both_databases!(
    what_is_cut_off_of_an_enrolment_is_done_by_the_next_try,
    a_newcomer_that_was_not_given_all_keys_reads_a_snapshot_when_they_come,
    what_is_cut_off_of_a_revocation_is_done_by_the_next_try,
    a_rotation_that_was_cut_off_and_comes_too_late_holds_up_nothing,
    a_snapshot_is_sealed_under_no_key_of_a_device_that_was_removed,
    entries_below_a_floor_that_come_twice_are_no_alarm,
    a_push_whose_answer_was_lost_may_be_compacted_before_it_is_sent_again,
);

fn cut_off(fault: Fault) -> Trouble {
    Trouble { fault: Some(fault), crashes: false }
}

async fn what_is_cut_off_of_an_enrolment_is_done_by_the_next_try(database: Database) {
    // The entry that enrols, the vault's key, and the person's.
    for push in 0..3 {
        let steps = vec![
            Step::Write(0, Write::Pin(1)),
            Step::Sync(0, Trouble::NONE),
            Step::Newcomer(0, cut_off(Fault::PushLost(push))),
        ];
        assert_eq!(all_is_well_after(database, steps).await.cut, 1);
    }
}

async fn a_newcomer_that_was_not_given_all_keys_reads_a_snapshot_when_they_come(
    database: Database,
) {
    // The vault's key is lost, or the person's alone.
    for push in 1..3 {
        let mut family = Family::gather(database).await;
        family.step(Step::Write(0, Write::Pin(1))).await;
        family.step(Step::Snapshot(0, Trouble::NONE)).await;
        family.step(Step::Sync(1, Trouble::NONE)).await;
        assert!(family.floor().await > 0, "it was confirmed");
        let new = family.add(ADA).await;
        family.invite(0, new).await;
        family.let_in(cut_off(Fault::PushLost(push))).await;
        family.step(Step::Sync(new, Trouble::NONE)).await;
        family.settle().await;
        family.everything_is_as_it_must_be().await;
    }
}

async fn what_is_cut_off_of_a_revocation_is_done_by_the_next_try(database: Database) {
    // The entry that revokes, and the vault's new key.
    for fault in [Fault::PushLost(0), Fault::AnswerLost(0), Fault::PushLost(1)] {
        let steps = vec![Step::Rotate(0, true, cut_off(fault)), Step::Write(0, Write::Pin(1))];
        assert_eq!(all_is_well_after(database, steps).await.cut, 1);
    }
}

async fn a_rotation_that_was_cut_off_and_comes_too_late_holds_up_nothing(database: Database) {
    let steps = vec![
        Step::Rotate(0, false, cut_off(Fault::PushLost(1))),
        Step::Write(2, Write::Insert(1)),
        // He makes the new key, for it is missing.
        Step::Sync(2, Trouble::NONE),
        Step::Write(0, Write::Insert(2)),
        Step::Sync(0, Trouble::NONE),
    ];
    all_is_well_after(database, steps).await;
}

async fn a_snapshot_is_sealed_under_no_key_of_a_device_that_was_removed(database: Database) {
    let mut family = Family::gather(database).await;
    // The entry that revokes comes through, and the new key does not.
    family.step(Step::Rotate(0, false, cut_off(Fault::PushLost(1)))).await;
    family.step(Step::Sync(2, Trouble::NONE)).await;
    let before = family.epoch(2).await;
    family.step(Step::Snapshot(2, Trouble::NONE)).await;
    assert_eq!(family.epoch(2).await, before + 1);
    family.settle().await;
    family.everything_is_as_it_must_be().await;
}

async fn entries_below_a_floor_that_come_twice_are_no_alarm(database: Database) {
    let mut family = Family::gather(database).await;
    family.step(Step::Snapshot(0, Trouble::NONE)).await;
    family.step(Step::Sync(1, Trouble::NONE)).await;
    assert!(family.floor().await > 0, "it was confirmed");
    let new = family.add(ADA).await;
    family.invite(0, new).await;
    family.let_in(Trouble::NONE).await;
    family.step(Step::Sync(new, cut_off(Fault::Doubled))).await;
    family.settle().await;
    family.everything_is_as_it_must_be().await;
}

async fn a_push_whose_answer_was_lost_may_be_compacted_before_it_is_sent_again(database: Database) {
    let mut family = Family::gather(database).await;
    family.step(Step::Write(0, Write::Insert(1))).await;
    family.step(Step::Sync(0, cut_off(Fault::AnswerLost(0)))).await;
    family.step(Step::Snapshot(1, Trouble::NONE)).await;
    family.step(Step::Sync(2, Trouble::NONE)).await;
    assert!(family.floor().await > 0, "it was confirmed");
    family.step(Step::Write(0, Write::Amount(1))).await;
    // It is not taken for a clone.
    family.step(Step::Sync(0, Trouble::NONE)).await;
    family.settle().await;
    family.everything_is_as_it_must_be().await;
}
