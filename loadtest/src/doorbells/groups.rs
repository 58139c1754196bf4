//! The groups of one burst: made before it, left after it.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::Method;
use serde_json::json;

use super::Arguments;
use super::service::token;
use crate::limits::SETUPS_MAX;
use crate::phones::http::{Calls, Phone};
use crate::progress;

/// A group: who writes, and who sleeps.
pub(super) struct Group {
    pub(super) id: String,
    pub(super) writer: Calls,
    sleepers: Vec<Phone>,
}

/// Makes all groups, with the number of their first token.
pub(super) async fn make(
    arguments: &Arguments,
    relay: SocketAddr,
    first_token: usize,
) -> Result<Vec<Group>> {
    let bar = progress::bar(arguments.groups as u64, "groups of sleeping phones");
    let groups = stream::iter(0..arguments.groups)
        .map(|number| {
            let first = first_token + number * arguments.sleepers;
            Box::pin(make_group(arguments, relay, number, first))
        })
        .buffer_unordered(SETUPS_MAX)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(groups)
}

async fn make_group(
    arguments: &Arguments,
    relay: SocketAddr,
    number: usize,
    first_token: usize,
) -> Result<Group> {
    let first = number * (arguments.sleepers + 1);
    let mut writer = Phone::enter(relay, first as u64).await?;
    let made = writer.insist(Method::POST, "/groups", json!({})).await?;
    let id = made["id"].as_str().context("a group has an id")?.to_owned();
    let mut sleepers = Vec::with_capacity(arguments.sleepers);
    for sleeper in 0..arguments.sleepers {
        // It comes, joins, says where it is rung, and goes.
        let mut phone = Phone::enter(relay, (first + 1 + sleeper) as u64).await?;
        phone.insist(Method::POST, &format!("/groups/{id}/join"), json!({})).await?;
        let place = json!({ "pushToken": token(first_token + sleeper), "pushPlatform": "fcm" });
        phone.insist(Method::PUT, "/groups/push-registration", place).await?;
        sleepers.push(phone.phone().clone());
    }
    Ok(Group { id, writer, sleepers })
}

/// Has everybody leave: the groups end, and nothing of them is left to be rung or read.
pub(super) async fn leave(groups: Vec<Group>) -> Result<()> {
    let bar = progress::bar(groups.len() as u64, "groups that end");
    stream::iter(groups)
        .map(|group| Box::pin(leave_group(group)))
        .buffer_unordered(SETUPS_MAX)
        .inspect_ok(|()| bar.inc(1))
        .try_collect::<()>()
        .await?;
    bar.finish_and_clear();
    Ok(())
}

async fn leave_group(mut group: Group) -> Result<()> {
    let path = format!("/groups/{}/members/me", group.id);
    for sleeper in &group.sleepers {
        sleeper.calls().await?.insist(Method::DELETE, &path, json!({})).await?;
    }
    group.writer.insist(Method::DELETE, &path, json!({})).await?;
    Ok(())
}
