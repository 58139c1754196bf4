//! `group`: making, joining and leaving groups, and letting others in.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, Events, JoinRequest};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::identity::fingerprint;
use sealwire_client::invite::Invite;
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::json;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::args::{Args, GroupCommand};
use crate::commands::{Unreached, connect, explain, keep_recovery, settle, unless_unreached};
use crate::output::{Output, clean, remark, short};
use crate::place::{INVITE, group, member, secret};

/// Fewest digits of a key by which somebody is let in, or its key taken. Keys that begin with a few digits
/// are quickly made, and a relay could put one in the place of the one whose fingerprint was compared.
const DIGITS_MIN: usize = 16;

/// How long it may take to be told what has happened.
const AT_ONCE: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    args: &Args,
    out: Output,
    device: &Device,
    command: &GroupCommand,
) -> Result<()> {
    match command {
        GroupCommand::Create { totals } => create(args, out, device, *totals).await,
        GroupCommand::Invite { group } => invite(args, out, device, group).await,
        GroupCommand::Join { invite } => {
            let invite = match invite {
                Some(invite) => Zeroizing::new(invite.clone()),
                None => secret(INVITE, "invite link or code: ")?,
            };
            join(args, out, device, &invite).await
        }
        GroupCommand::Approve { group, device: None, .. } => {
            requests(args, out, device, group).await
        }
        GroupCommand::Approve { group, device: Some(whom), name } => {
            approve(args, out, device, group, whom, name.clone()).await
        }
        GroupCommand::AcceptKey { group, device: whom } => {
            accept_key(out, device, group, whom).await
        }
        GroupCommand::Leave { group: name } => {
            let group = group(device, name).await?;
            let id = device.leave(group.log).await?;
            settle(args, out, device, &group, id, Unreached::Fails, "left the group").await?;
            keep_recovery(device).await;
            Ok(())
        }
        GroupCommand::Revoke { group: name, device: whom } => {
            let group = group(device, name).await?;
            let whom = member(device, &group, whom).await?;
            let id = device.revoke(group.log, whom).await?;
            let done = format!("removed {}", short(whom));
            settle(args, out, device, &group, id, Unreached::Fails, &done).await?;
            keep_recovery(device).await;
            Ok(())
        }
        GroupCommand::Rotate { group: name } => {
            let group = group(device, name).await?;
            let id = device.rotate(group.log).await?;
            settle(args, out, device, &group, id, Unreached::Fails, "made another key").await?;
            keep_recovery(device).await;
            Ok(())
        }
        GroupCommand::List => {
            let groups = device.logs().await?;
            if groups.is_empty() {
                remark(
                    "this device is in no group yet: `group create` makes one, `group join` joins one",
                );
            }
            for info in groups {
                out.group(&info)?;
            }
            Ok(())
        }
        GroupCommand::Members { group: name } => members(out, device, name).await,
    }
}

async fn create(args: &Args, out: Output, device: &Device, totals: bool) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    if totals {
        let made = device.create_totals_group(&relay).await;
        let log = made.map_err(|error| explain(&error))?;
        keep_recovery(device).await;
        return print_group(out, log);
    }
    let log = device.found_group(&relay).await?;
    let connection = device.connect(&relay);
    match unless_unreached(&connection, device.wait_ready(log, args.deadline())).await {
        Ok(()) => keep_recovery(device).await,
        Err(Error::Timeout) => {
            remark("the relay was not reached; the group is made there when it is");
        }
        Err(error) => bail!(error),
    }
    connection.stop().await;
    print_group(out, log)
}

async fn invite(args: &Args, out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    if group.log.is_totals() {
        remark("whoever has this code can ask to be let in; let them in with `group approve`");
        let code = group.log.to_uuid_text();
        return out.line(&code, &json!({ "code": code, "relay": group.relay.as_str() }));
    }
    let invite = match device.invite(group.log).await {
        Err(Error::UnknownRelay) => {
            let connection = connect(args, device, &group.relay).await?;
            let invite = device.invite(group.log).await;
            connection.stop().await;
            invite?
        }
        invite => invite?,
    };
    let link = invite.link();
    remark(&format!("who joins sees your fingerprint: {}", fingerprint(device.key())));
    out.line(&link, &json!({ "link": link.as_str() }))
}

async fn join(args: &Args, out: Output, device: &Device, text: &str) -> Result<()> {
    let (log, relay, missing) = if let Some(log) = LogId::from_uuid_text(text.trim()) {
        let relay = RelayUrl::parse(&args.relay)?;
        match device.join_totals(&relay, log).await {
            // Asked before, and not let in yet.
            Ok(()) | Err(Error::AlreadyMember) => {}
            Err(error) => bail!(error),
        }
        remark(&format!("your fingerprint is {}", fingerprint(device.key())));
        let missing = "asked to be let in; a member does it with `group approve`, or in the app. The \
                       key comes while this program runs: join again, or `listen`";
        (log, relay, missing)
    } else {
        let invite = Invite::parse(text)
            .context("copy the link whole, from sealwire:// to its end, in quotes")?;
        let log = device.join(&invite).await.map_err(|error| explain(&error))?;
        let inviter = fingerprint(invite.inviter);
        remark(&format!("you are invited by the device with the fingerprint {inviter}"));
        let missing = "joined, but no member was there to give the group's key; it comes when one \
                       is, while `listen` or `chat` runs";
        (log, invite.relay, missing)
    };
    let mut events = device.events().await?;
    let connection = connect(args, device, &relay).await?;
    match device.wait_ready(log, args.deadline()).await {
        Ok(()) => say_who(&mut events, log).await?,
        Err(Error::Timeout) => remark(missing),
        Err(error) => bail!(error),
    }
    keep_recovery(device).await;
    connection.stop().await;
    print_group(out, log)
}

/// Says who has given the group's key, for the relay of a Totals group could have put in another device;
/// and whether the inviter is gone.
async fn say_who(events: &mut Events, log: LogId) -> Result<()> {
    // What has happened is told at once; nothing is waited for.
    while let Ok(event) = timeout(AT_ONCE, events.next()).await {
        let event = event?;
        if event.log() != Some(log) {
            continue;
        }
        if let Event::KeyReceived { from, .. } = event {
            let print = fingerprint(from);
            remark(&format!("the key came from the device with the fingerprint {print}"));
            break;
        }
        if let Event::InviterGone { .. } = event {
            remark(
                "whoever made the invite is no member any more; ask somebody else whether these are \
                 the right members, with the fingerprints of `group members`",
            );
        }
    }
    Ok(())
}

/// Reads a group to its end, and prints who asks to be let in.
async fn requests(args: &Args, out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    if !group.log.is_totals() {
        bail!("whoever has the link of a native group is let in by it; see `group members`");
    }
    let mut events = device.events().await?;
    let connection = device.connect(&group.relay);
    let mut unread = BTreeSet::from([group.log]);
    let read = timeout(args.deadline(), async {
        while !unread.is_empty() {
            if let Event::Drained { log, .. } | Event::Ended { log, .. } = events.next().await? {
                unread.remove(&log);
            }
        }
        Ok::<_, Error>(())
    });
    match read.await {
        Ok(read) => read?,
        Err(_) => remark("the relay was not reached; these have asked before"),
    }
    connection.stop().await;
    let asking = device.join_requests(group.log).await?;
    if asking.is_empty() {
        remark("nobody asks to be let in; `group invite` prints the code to ask with");
    } else {
        remark(
            "compare the fingerprint with the one that the other device shows, and let it in with `group \
             approve` and its key or fingerprint",
        );
    }
    for request in asking {
        print_request(out, &request)?;
    }
    for sender in device.offered_keys(group.log).await? {
        remark(&format!(
            "{}, fingerprint {}, offers another key of this group; if you trust that one more than what \
             you have, run `group accept-key` with its fingerprint",
            short(sender),
            fingerprint(sender)
        ));
    }
    Ok(())
}

async fn approve(
    args: &Args,
    out: Output,
    device: &Device,
    name: &str,
    whom: &str,
    group_name: Option<String>,
) -> Result<()> {
    let group = group(device, name).await?;
    let asking: Vec<DeviceKey> =
        device.join_requests(group.log).await?.into_iter().map(|it| it.device).collect();
    let whom = only(&asking, whom, "nobody who asks to be let in")?;
    let id = device.approve(group.log, whom, group_name).await?;
    let done = format!("let in {}, fingerprint {}", short(whom), fingerprint(whom));
    settle(args, out, device, &group, id, Unreached::Waits, &done).await
}

async fn accept_key(out: Output, device: &Device, name: &str, whom: &str) -> Result<()> {
    let group = group(device, name).await?;
    let offering = device.offered_keys(group.log).await?;
    let whom = only(&offering, whom, "nobody who offers a key")?;
    device.accept_key(group.log, whom).await?;
    keep_recovery(device).await;
    let text = format!("the group's key is the one of {} from now on", short(whom));
    let value = json!({ "log": group.log.to_uuid_text(), "accepted_from": whom.to_hex() });
    out.done(&text, &value)
}

async fn members(out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    let asking = device.join_requests(group.log).await?;
    let ledger = device.ledger(group.log).await?;
    for member in device.members(group.log).await? {
        let asks = asking.iter().any(|request| request.device == member.device);
        let person = ledger.person(&member.device.into());
        let name = person.and_then(|person| person.name.as_deref());
        out.member(&member, name, device.key(), asks)?;
    }
    Ok(())
}

fn print_group(out: Output, log: LogId) -> Result<()> {
    let name = log.to_uuid_text();
    let format = if log.is_totals() { "totals" } else { "native" };
    out.line(&name, &json!({ "log": name, "format": format }))
}

fn print_request(out: Output, request: &JoinRequest) -> Result<()> {
    let (key, print) = (request.device.to_hex(), fingerprint(request.device));
    let name = request.name.as_deref().map(clean);
    let text = format!("{key}  {print}  {}", name.as_deref().unwrap_or("(no name)"));
    let value = json!({
        "device": key,
        "fingerprint": print,
        "name": name,
        "asked_at": request.asked_at,
    });
    out.line(&text, &value)
}

/// The one among these that has this fingerprint, or whose key begins so.
fn only(keys: &[DeviceKey], name: &str, none: &str) -> Result<DeviceKey> {
    let wanted: String = name.split_whitespace().collect::<String>().to_ascii_lowercase();
    let print_of = |key: &DeviceKey| fingerprint(*key).replace(' ', "");
    if let Some(key) = keys.iter().find(|key| print_of(key) == wanted) {
        return Ok(*key);
    }
    let mut found = keys.iter().filter(|key| key.to_hex().starts_with(&wanted));
    match (found.next(), found.next()) {
        (None, _) => Err(anyhow!(
            "there is {none} whose key begins with {name}; `group approve` and `group members` show who is \
             there"
        )),
        (Some(_), _) if wanted.len() < DIGITS_MIN => Err(anyhow!(
            "{name} is too little to be sure of: another key could be made that begins so. Type at least \
             {DIGITS_MIN} digits of the key, or its fingerprint in quotes"
        )),
        (Some(key), None) => Ok(*key),
        (Some(_), Some(_)) => Err(anyhow!("several keys begin with {name}; type more of it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_by_the_beginning_of_a_key_that_can_be_made() {
        let bob = DeviceKey([0xb0; 32]);
        let mut alike = bob;
        alike.0[5] = 0;
        let key = bob.to_hex();
        for text in [&key[..], &key[..DIGITS_MIN], &fingerprint(bob), &key.to_uppercase()] {
            assert_eq!(only(&[bob, alike], text, "nobody").ok(), Some(bob), "{text}");
        }
        for text in [&key[..8], &key[..DIGITS_MIN - 1], ""] {
            let refused = only(&[bob], text, "nobody").err().map(|error| error.to_string());
            assert!(refused.is_some_and(|it| it.contains("too little")), "{text}");
        }
        assert!(only(&[alike], &key, "nobody").is_err());
    }
}
