//! Entries that are due at fixed times, whatever the relay does.
//!
//! The runtime's timers round to a millisecond, which is what a commit takes: so a thread of its own
//! sleeps from one due time to the next. It tells each sender when its entry *was* due; that a sender
//! or the relay is late is not forgiven.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::tally::Tally;

/// Due times that may wait for one sender.
pub(crate) const TICKS_MAX: usize = 256;

/// Begins to tell the senders in turn, `rate` times a second in all, until the end of the window.
pub(crate) fn start(
    rate: u32,
    senders: Vec<mpsc::Sender<u64>>,
    tally: &Arc<Tally>,
) -> JoinHandle<()> {
    let (began, end) = (tally.began(), tally.window().end);
    let tally = tally.clone();
    thread::spawn(move || {
        let mut told = 0;
        let turns = senders.iter().cycle();
        for (due, sender) in due_times(rate).take_while(|due| *due < end).zip(turns) {
            sleep_until(began + Duration::from_nanos(due));
            // A sender that has ended has said why.
            if sender.blocking_send(due).is_err() {
                break;
            }
            told += 1;
            // One that is far behind holds up the others; what was due meanwhile was never sent.
            if tally.now() >= end {
                break;
            }
        }
        let untold = due_times(rate).skip(told).take_while(|due| *due < end);
        untold.for_each(|due| tally.never_sent(due));
    })
}

/// Nanoseconds of the run at which something is due.
fn due_times(rate: u32) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |number| {
        let due = u128::from(number) * 1_000_000_000 / u128::from(rate);
        u64::try_from(due).unwrap_or(u64::MAX)
    })
}

fn sleep_until(due: Instant) {
    let wait = due.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        #[expect(clippy::disallowed_methods, reason = "this thread is no worker of the runtime")]
        thread::sleep(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_do_not_drift() {
        assert_eq!(
            due_times(3).take(4).collect::<Vec<_>>(),
            [0, 333_333_333, 666_666_666, 1_000_000_000]
        );
        assert_eq!(due_times(7).nth(7_000), Some(1000 * 1_000_000_000));
    }

    #[tokio::test]
    async fn every_sender_has_its_turn_and_hears_when_its_entry_was_due() {
        let tally = Arc::new(Tally::new(0, 1));
        let (first, mut first_ticks) = mpsc::channel(TICKS_MAX);
        let (second, mut second_ticks) = mpsc::channel(TICKS_MAX);
        tally.begin();
        let pacer = start(100, vec![first, second], &tally);
        let mut heard = 0;
        while let Some(due) = first_ticks.recv().await {
            assert_eq!(due, heard * 20_000_000);
            assert!(tally.now() >= due);
            heard += 1;
        }
        assert_eq!(heard, 50);
        assert_eq!(second_ticks.recv().await, Some(10_000_000));
        pacer.join().expect("it ends");
        tally.give_up(tally.now(), 1, 1);
        assert_eq!(tally.counts().unsent, 0);
    }

    #[tokio::test]
    async fn what_nobody_has_taken_is_never_sent_and_not_forgotten() {
        let tally = Arc::new(Tally::new(0, 1));
        let (sender, mut ticks) = mpsc::channel(2);
        tally.begin();
        let pacer = start(100, vec![sender], &tally);
        ticks.close();
        let mut told = 0;
        while ticks.recv().await.is_some() {
            told += 1;
        }
        pacer.join().expect("it ends");
        tally.give_up(tally.now(), 1, 1);
        assert_eq!(tally.counts().unsent, 100 - told);
        assert_eq!(tally.push_to_appended().count, 100 - told);
    }
}
