//! Two hundred phones start at once, as after a break in the network: each logs in several times, asks
//! for everything, and opens all of its streams; and every request is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::json;

use crate::support::on_both_databases;
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;

on_both_databases!(two_hundred_phones_that_start_at_once_are_all_served);

const PHONES: u8 = 200;

/// Members of each group.
const MEMBERS: usize = 4;

#[derive(Clone, Default)]
struct Times(Arc<Mutex<Vec<Duration>>>);

impl Times {
    async fn of<T>(&self, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let answer = call.await;
        self.0.lock().push(begun.elapsed());
        answer
    }
}

async fn two_hundred_phones_that_start_at_once_are_all_served(database: Database) {
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let phones: Vec<Phone> = (0..PHONES).map(|seed| Phone::new(relay.public(), seed)).collect();
    let mut groups = Vec::new();
    for members in phones.chunks(MEMBERS) {
        let group = members[0].create().await;
        join_all(members[1..].iter().map(async |phone| phone.join(&group).await.ok())).await;
        groups.push(group);
    }
    let times = Times::default();
    let begun = Instant::now();
    let started = join_all(phones.iter().enumerate().map(async |(number, phone)| {
        let group = &groups[number / MEMBERS];
        // Page, coordinator and push registration are client objects of their own.
        let (page, coordinator, push) = (phone.beside(), phone.beside(), phone.beside());
        let registration = json!({ "pushToken": phone.name(), "pushPlatform": "fcm" });
        let registered = push.call("PUT", "/groups/push-registration", Some(registration));
        times.of(registered).await.expect("an answer").ok();
        let mut streams = Vec::new();
        for client in [&page, &coordinator] {
            times.of(client.groups()).await;
            times.of(client.pending(group)).await;
            streams.push(times.of(client.listen("/groups/stream")).await);
        }
        let one = format!("/groups/{group}/pending/stream");
        streams.push(times.of(coordinator.listen(&one)).await);
        let mut all = times.of(page.listen("/groups/pending/stream")).await;
        let blob = format!("{number:04x}");
        times.of(page.send_all(group, "member_meta", &blob)).await.ok();
        // What the others say comes, and is acked one by one.
        for _ in 1..MEMBERS {
            let payload = all.payload().await;
            let id = payload["id"].as_str().expect("an id");
            times.of(coordinator.ack(id)).await.ok();
        }
        assert_eq!(times.of(page.pending(group)).await, Vec::<serde_json::Value>::new());
        streams.push(all);
        streams
    }))
    .await;
    let took = begun.elapsed();
    assert_eq!(started.len(), usize::from(PHONES));
    let mut all = std::mem::take(&mut *times.0.lock());
    all.sort_unstable();
    let (middle, late) = (all[all.len() / 2], all[all.len() * 99 / 100]);
    println!("{} calls in {took:?}: p50 {middle:?}, p99 {late:?}", all.len());
    assert!(late < Duration::from_secs(12), "the app would have given up");
    assert_eq!(relay.metric("sealwire_streams", "").await, f64::from(PHONES) * 4.0);
}
