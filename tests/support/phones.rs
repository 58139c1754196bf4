//! A crowd of phones that write, read, ack and listen while the relay is killed, and the judge of what
//! they were told.
//!
//! Each phone does what the app does: it sends, pulls page after page, acks what it could open, and
//! listens. Every blob is unlike every other and says who sent it. A phone never acks some of them,
//! as if it could not open them. What the relay owes, and what each [`Complaint`] is about:
//! - what was answered as sent is there for every member until that member has acked it (`Lost`);
//! - what a member was told that it has acked does not come back (`Returned`);
//! - nothing is there that nobody sent, or under another key, or for whom it was not (`Invented`);
//! - in one page and over one stream the payloads of one sender stand in the order in which they were
//!   sent one after another (`Shuffled`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::phone::{Event, Phone};
use super::random::Random;

/// One in so many payloads is never acked by a phone.
const STUCK_ONE_IN: u64 = 7;

/// Longest pause between two things that a phone does.
const PAUSE_MAX_MS: u64 = 40;

/// What is wrong.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Complaint {
    /// This member was never given it, or is given it no more without having acked it.
    Lost { member: usize, blob: String },
    /// This member had been told that it has acked it.
    Returned { member: usize, blob: String },
    /// Nobody sent it to this member, or not under that key.
    Invented { member: usize, blob: String },
    /// It stands before one that was sent earlier.
    Shuffled { member: usize, blob: String },
}

/// What has happened so far.
#[derive(Default)]
struct Notes {
    /// Every blob that was sent: by whom, to whom, and whether it was answered.
    sent: BTreeMap<String, Sending>,
    /// What each member was told that it has acked.
    acked: BTreeSet<(usize, String)>,
    complaints: BTreeSet<Complaint>,
    /// How many payloads were seen, in pages and streams.
    seen: usize,
}

struct Sending {
    sender: usize,
    /// None for all.
    to: Option<usize>,
    answered: bool,
    number: u64,
}

/// A crowd of phones in one group.
pub(crate) struct Phones {
    phones: Vec<Phone>,
    group: String,
    notes: Arc<Mutex<Notes>>,
}

/// What the crowd saw, and what is wrong with it.
pub(crate) struct Verdict {
    pub(crate) complaints: Vec<Complaint>,
    pub(crate) sent: usize,
    pub(crate) acked: usize,
    pub(crate) seen: usize,
}

impl Phones {
    /// Phones that are all in one group.
    pub(crate) async fn gather(relay: SocketAddr, count: u8) -> Self {
        let phones: Vec<Phone> = (1..=count).map(|seed| Phone::new(relay, seed)).collect();
        let group = phones[0].create().await;
        for phone in &phones[1..] {
            phone.join(&group).await.ok();
        }
        Self { phones, group, notes: Arc::default() }
    }

    /// Lets the phones do what they do while `beside` happens, and judges.
    pub(crate) async fn run(self, seed: u64, beside: impl Future<Output = ()>) -> Verdict {
        let stop = AtomicBool::new(false);
        let doing = async {
            let mut all: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
            for member in 0..self.phones.len() {
                let random = |salt: u64| Random::new(seed ^ (member as u64 * 31 + salt));
                all.push(Box::pin(self.write(member, random(1), &stop)));
                all.push(Box::pin(self.pull(member, random(2), &stop)));
                all.push(Box::pin(self.hear(member, &stop)));
            }
            join_all(all).await;
        };
        let beside = async {
            beside.await;
            stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(doing, beside);
        self.judge().await
    }

    async fn write(&self, member: usize, mut random: Random, stop: &AtomicBool) {
        let phone = self.phones[member].beside();
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let blob = format!("{member:02x}{number:08x}{}", hex::encode(random.bytes(24)));
            let others = self.phones.len();
            let to = random.one_in(3).then(|| (member + 1 + random.below(others - 1)) % others);
            let sending = Sending { sender: member, to, answered: false, number };
            self.notes.lock().sent.insert(blob.clone(), sending);
            let (path, body) = match to {
                None => ("payloads", json!({ "encryptedBlob": blob, "kind": "expense" })),
                Some(to) => {
                    let key = self.phones[to].name();
                    let body = json!({
                        "encryptedBlob": blob, "kind": "nudge", "recipientPublicKeys": [key],
                    });
                    ("payloads/targeted", body)
                }
            };
            let path = format!("/groups/{}/{path}", self.group);
            let answer = phone.call("POST", &path, Some(body)).await;
            if answer.is_ok_and(|answer| answer.is_success()) {
                let mut notes = self.notes.lock();
                notes.sent.get_mut(&blob).expect("noted").answered = true;
            }
            sleep(Duration::from_millis(random.next() % PAUSE_MAX_MS)).await;
        }
    }

    async fn pull(&self, member: usize, mut random: Random, stop: &AtomicBool) {
        let phone = self.phones[member].beside();
        let path = format!("/groups/{}/pending", self.group);
        while !stop.load(Ordering::Relaxed) {
            // What was acked before the page was asked for must not be on it.
            let acked = self.acked_by(member);
            if let Ok(answer) = phone.call("GET", &path, None).await
                && answer.is_success()
            {
                let payloads = answer.json["payloads"].as_array().cloned().unwrap_or_default();
                self.look_at(member, &payloads, &acked, true);
                let mut opened: Vec<Value> =
                    payloads.into_iter().filter(|it| !is_stuck(member, &blob_of(it))).collect();
                opened.truncate(1 + random.below(20));
                if random.one_in(3) {
                    for payload in &opened {
                        self.ack(member, &phone, std::slice::from_ref(payload)).await;
                    }
                } else if opened.len() > 1 {
                    self.ack(member, &phone, &opened).await;
                }
            }
            sleep(Duration::from_millis(random.next() % PAUSE_MAX_MS)).await;
        }
    }

    async fn ack(&self, member: usize, phone: &Phone, payloads: &[Value]) {
        let ids: Vec<&str> = payloads.iter().filter_map(|it| it["id"].as_str()).collect();
        let answer = match ids.as_slice() {
            [id] => phone.call("POST", &format!("/payloads/{id}/ack"), None).await,
            ids => phone.call("POST", "/payloads/ack", Some(json!({ "payloadIds": ids }))).await,
        };
        if answer.is_ok_and(|answer| answer.is_success()) {
            let mut notes = self.notes.lock();
            notes.acked.extend(payloads.iter().map(|payload| (member, blob_of(payload))));
        }
    }

    async fn hear(&self, member: usize, stop: &AtomicBool) {
        let phone = self.phones[member].beside();
        while !stop.load(Ordering::Relaxed) {
            let acked = self.acked_by(member);
            if let Ok(mut stream) = phone.try_listen("/groups/pending/stream").await {
                let mut heard = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match timeout(Duration::from_millis(200), stream.next()).await {
                        Ok(Some(Event::Payload(payload))) => heard.push(payload),
                        Ok(Some(Event::GroupsChanged)) | Err(_) => {}
                        Ok(None) => break,
                    }
                }
                self.look_at(member, &heard, &acked, false);
            }
            sleep(Duration::from_millis(PAUSE_MAX_MS)).await;
        }
    }

    fn acked_by(&self, member: usize) -> BTreeSet<String> {
        let notes = self.notes.lock();
        let own = notes.acked.iter().filter(|(who, _)| *who == member);
        own.map(|(_, blob)| blob.clone()).collect()
    }

    /// Compares payloads, in the order in which they came, with what was sent and acked.
    fn look_at(&self, member: usize, payloads: &[Value], acked: &BTreeSet<String>, page: bool) {
        let notes = &mut *self.notes.lock();
        notes.seen += payloads.len();
        let mut last: BTreeMap<(usize, bool), u64> = BTreeMap::new();
        for payload in payloads {
            let blob = blob_of(payload);
            if acked.contains(&blob) {
                notes.complaints.insert(Complaint::Returned { member, blob: blob.clone() });
            }
            let Some(sending) = notes.sent.get(&blob) else {
                notes.complaints.insert(Complaint::Invented { member, blob });
                continue;
            };
            let sender = self.phones[sending.sender].name();
            let is_for = sending.sender != member && sending.to.is_none_or(|to| to == member);
            if payload["senderPublicKey"] != sender || !is_for {
                notes.complaints.insert(Complaint::Invented { member, blob: blob.clone() });
            }
            // A page may give what is for one alone first.
            let lane = (sending.sender, page && sending.to.is_some());
            let before = last.insert(lane, sending.number).unwrap_or(0);
            if before >= sending.number {
                notes.complaints.insert(Complaint::Shuffled { member, blob });
            }
        }
    }

    async fn judge(self) -> Verdict {
        for member in 0..self.phones.len() {
            let acked = self.acked_by(member);
            let phone = &self.phones[member];
            let path = format!("/groups/{}/pending", self.group);
            let mut answer = phone.get(&path).await;
            for _ in 0..20 {
                if answer.is_success() {
                    break;
                }
                sleep(Duration::from_millis(500)).await;
                answer = phone.get(&path).await;
            }
            let payloads = answer.ok()["payloads"].as_array().cloned().expect("a list");
            self.look_at(member, &payloads, &acked, true);
            let left: BTreeSet<String> = payloads.iter().map(blob_of).collect();
            let notes = &mut *self.notes.lock();
            for (blob, sending) in &notes.sent {
                let is_for = sending.sender != member && sending.to.is_none_or(|to| to == member);
                let gone = !left.contains(blob) && !acked.contains(blob);
                // An ack whose answer was lost may have been taken; those that are never acked show
                // what is lost.
                if is_for && sending.answered && gone && is_stuck(member, blob) {
                    notes.complaints.insert(Complaint::Lost { member, blob: blob.clone() });
                }
            }
        }
        let notes = std::mem::take(&mut *self.notes.lock());
        Verdict {
            sent: notes.sent.values().filter(|sending| sending.answered).count(),
            acked: notes.acked.len(),
            seen: notes.seen,
            complaints: notes.complaints.into_iter().collect(),
        }
    }
}

fn blob_of(payload: &Value) -> String {
    payload["encryptedBlob"].as_str().unwrap_or_default().to_owned()
}

/// Whether this phone cannot open a payload, and so never acks it.
fn is_stuck(member: usize, blob: &str) -> bool {
    let number = blob.get(2..10).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.is_some_and(|number| (number + member as u64).is_multiple_of(STUCK_ONE_IN))
}
