//! A few devices, many things at once, and what must be true when it has become quiet.

use sealwire_client::device::{Outgoing, Phase};
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{DeviceKey, Failure, LogId};

use crate::relay::Fault;
use crate::world::{Person, SOON, World, until};

/// Chance that can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }
}

struct Crowd {
    world: World,
    log: LogId,
    people: Vec<Person>,
    dice: Dice,
    /// How many texts each has said to all, and to each one in particular.
    said: Vec<u32>,
}

impl Crowd {
    async fn gather(seed: u64) -> Self {
        let world = World::start().await;
        let mut people = Vec::new();
        for name in ["anna", "ben", "cleo", "dora"] {
            people.push(world.online(name).await);
        }
        let mut members: Vec<&mut Person> = people.iter_mut().collect();
        let log = world.group(&mut members).await;
        Self { world, log, said: vec![0; people.len()], people, dice: Dice(seed) }
    }

    fn fault(&mut self) -> Fault {
        let passing = || Failure::after_ms(ErrorCode::Unavailable, 3);
        match self.dice.roll(4) {
            0 => Fault::AppendAndBreak,
            1 => Fault::Break,
            2 => Fault::Refuse(passing()),
            _ => Fault::AppendAndRefuse(passing()),
        }
    }

    async fn something_happens(&mut self) {
        let who = self.dice.roll(self.people.len());
        let other = (who + 1 + self.dice.roll(self.people.len() - 1)) % self.people.len();
        match self.dice.roll(12) {
            0..=4 => {
                self.said[who] += 1;
                let text = format!("all {}", self.said[who]);
                self.people[who].say(self.log, &text).await;
            }
            5 | 6 => {
                let (person, to) = (&self.people[who], &self.people[other]);
                person.say_to(self.log, &[to], "one").await;
            }
            7 => {
                let fault = self.fault();
                self.world.relay.fault(fault);
            }
            8 => self.world.relay.kick(),
            9 => {
                let _ = self.people[who].device.rotate(self.log).await.expect("rotating");
            }
            10 => self.people[who].disconnect().await,
            _ => self.people[who].connect().await,
        }
    }

    async fn becomes_quiet(&mut self) {
        for person in &mut self.people {
            person.connect().await;
        }
        for person in &self.people {
            until("an empty outbox", async || {
                person.device.unsent(self.log, 1).await.expect("unsent").is_empty()
            })
            .await;
        }
        for person in &self.people {
            let head = self.world.relay.head(self.log);
            person.device.wait_read(self.log, head.seq, SOON).await.expect("read");
        }
    }
}

async fn a_crowd(seed: u64) {
    let mut crowd = Crowd::gather(seed).await;
    for _ in 0..80 {
        crowd.something_happens().await;
    }
    crowd.becomes_quiet().await;

    let keys: Vec<DeviceKey> = crowd.people.iter().map(Person::key).collect();
    for (listener, person) in crowd.people.iter().enumerate() {
        person.sees_members(crowd.log, &keys).await;
        let received = person.device.inbox(Some(crowd.log), 10_000).await.expect("an inbox");
        for (speaker, key) in keys.iter().enumerate() {
            let of_one = received.iter().filter(|entry| entry.sender == *key);
            let counts: Vec<u64> = of_one.clone().map(|entry| entry.count).collect();
            assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
            let to_all: Vec<Vec<u8>> = of_one
                .filter(|entry| entry.recipients.is_empty())
                .map(|entry| entry.payload.clone())
                .collect();
            let expected: Vec<Vec<u8>> =
                (1..=crowd.said[speaker]).map(|n| format!("all {n}").into_bytes()).collect();
            if speaker != listener {
                assert!(to_all == expected, "seed {seed}: all that was said, and nothing else");
            }
        }
    }
    let epochs: Vec<u32> = {
        let mut epochs = Vec::new();
        for person in &crowd.people {
            let info = person.device.log(crowd.log).await.expect("a log");
            assert!(info.holds_key && !info.cloned);
            epochs.push(info.epoch);
        }
        epochs
    };
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]), "{epochs:?}");
}

#[tokio::test]
async fn a_crowd_in_trouble_agrees_when_it_becomes_quiet() {
    a_crowd(1).await;
}

#[tokio::test]
async fn another_crowd_in_trouble_agrees_when_it_becomes_quiet() {
    a_crowd(2).await;
}

#[tokio::test]
async fn a_third_crowd_in_trouble_agrees_when_it_becomes_quiet() {
    a_crowd(3).await;
}

/// Beyond talking, some leave and come back, whatever else is going on.
async fn a_crowd_that_comes_and_goes(seed: u64) {
    let mut crowd = Crowd::gather(seed).await;
    let invite = crowd.people[0].device.invite(crowd.log).await.expect("an invite");
    for _ in 0..60 {
        let who = 1 + crowd.dice.roll(crowd.people.len() - 1);
        match crowd.dice.roll(8) {
            0 => {
                // Whoever has left already cannot leave again.
                let _ = crowd.people[who].device.leave(crowd.log).await;
            }
            1 | 2 => {
                let _ = crowd.people[who].device.join(&invite).await;
            }
            3 => crowd.world.relay.kick(),
            4 => {
                let fault = crowd.fault();
                crowd.world.relay.fault(fault);
            }
            _ => {
                let text = Outgoing::to_all("now and then");
                let _ = crowd.people[who].device.send(crowd.log, text).await;
            }
        }
    }
    for person in &mut crowd.people {
        person.connect().await;
        // What was asked for last may still be under way, leaving too: what is said last comes after
        // all of it.
        until("being a member", async || {
            let _ = person.device.join(&invite).await;
            let Ok(last) = person.device.send(crowd.log, Outgoing::to_all("still here")).await
            else {
                return false;
            };
            let appended = person.device.wait_appended(last, SOON).await.is_ok();
            let info = person.device.log(crowd.log).await.expect("a log");
            appended && info.phase == Phase::Member && info.unsent == 0
        })
        .await;
        person.device.wait_ready(crowd.log, SOON).await.expect("ready");
    }
    let keys: Vec<DeviceKey> = crowd.people.iter().map(Person::key).collect();
    for person in &crowd.people {
        person.sees_members(crowd.log, &keys).await;
    }
    for person in &crowd.people {
        person.say_for_good(crowd.log, "the end").await;
    }
    for person in &crowd.people {
        until("hearing everybody", async || {
            let received = person.device.inbox(Some(crowd.log), 10_000).await.expect("an inbox");
            received.iter().filter(|entry| entry.payload == b"the end").count() == keys.len() - 1
        })
        .await;
        let received = person.device.inbox(Some(crowd.log), 10_000).await.expect("an inbox");
        for key in &keys {
            let counts: Vec<u64> = received
                .iter()
                .filter(|entry| entry.sender == *key)
                .map(|entry| entry.count)
                .collect();
            assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
        }
        assert!(!person.device.log(crowd.log).await.expect("a log").cloned);
    }
}

#[tokio::test]
async fn those_who_come_and_go_in_trouble_end_as_one_group() {
    a_crowd_that_comes_and_goes(1).await;
}

#[tokio::test]
async fn others_who_come_and_go_in_trouble_end_as_one_group() {
    a_crowd_that_comes_and_goes(2).await;
}
