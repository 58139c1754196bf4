//! The two commands that go on: listening, and talking.

use std::collections::BTreeSet;

use anyhow::Result;
use sealwire_client::device::{Device, LogInfo, Outgoing};
use sealwire_client::event::{Event, Received};
use sealwire_client::numbering::DraftId;
use sealwire_client::session::Connection;
use sealwire_protocol::LogId;
use tokio::signal::ctrl_c;
use tokio::sync::mpsc;

use crate::args::Args;
use crate::commands::{FAREWELL, connect_all, linger};
use crate::output::{Output, remark, short};
use crate::place::group;

/// Entries of the inbox that are printed at a time.
const PAGE: usize = 64;

/// Lines that may be typed ahead.
const LINES_MAX: usize = 64;

/// Prints what comes, for one group or for all.
pub(crate) async fn listen(
    args: &Args,
    out: Output,
    device: &Device,
    name: Option<&str>,
    once: bool,
) -> Result<()> {
    let groups = match name {
        Some(name) => vec![group(device, name).await?],
        None => device.logs().await?,
    };
    let only = name.and_then(|_| groups.first()).map(|group| group.log);
    let mut listener = Listener { device, out, only, printed: BTreeSet::new() };
    let mut events = device.events().await?;
    listener.print_inbox().await?;
    let connections = connect_all(device, &groups);
    let mut undrained: BTreeSet<LogId> =
        groups.iter().filter(|group| group.phase.is_open()).map(|group| group.log).collect();
    let deadline = tokio::time::sleep(args.deadline());
    tokio::pin!(deadline);
    while !(once && undrained.is_empty()) {
        tokio::select! {
            event = events.next() => {
                let event = event?;
                if let Event::Drained { log, .. } | Event::Ended { log, .. } = &event {
                    undrained.remove(log);
                }
                listener.on(&event).await?;
            }
            _ = ctrl_c() => break,
            () = &mut deadline, if once => {
                remark("not everything could be read in time");
                break;
            }
        }
    }
    if once && undrained.is_empty() {
        for group in groups.iter().filter(|group| group.phase.is_open()) {
            linger(args, device, group.log).await?;
        }
    }
    // What was committed before the end was seen.
    listener.print_inbox().await?;
    stop(connections).await;
    Ok(())
}

/// Sends every line, and prints what comes.
pub(crate) async fn chat(args: &Args, out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    let mut listener = Listener { device, out, only: Some(group.log), printed: BTreeSet::new() };
    let mut events = device.events().await?;
    listener.print_inbox().await?;
    remark(&format!("you are {}; end with ctrl-d", short(device.key())));
    let connections = connect_all(device, std::slice::from_ref(&group));
    let mut lines = typed();
    let mut last = None;
    loop {
        tokio::select! {
            event = events.next() => listener.on(&event?).await?,
            line = lines.recv() => match line {
                Some(line) => last = say(device, &group, &line).await?.or(last),
                None => break,
            },
            _ = ctrl_c() => break,
        }
    }
    if let Some(id) = last {
        let wait = FAREWELL.min(args.deadline());
        if device.wait_appended(id, wait).await.is_err() {
            remark("what was said last waits in the outbox");
        }
    }
    stop(connections).await;
    Ok(())
}

/// The lines of standard input. They are read on a thread of their own, which may hang in the middle
/// of a line when the program ends.
fn typed() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

async fn say(device: &Device, group: &LogInfo, line: &str) -> Result<Option<DraftId>> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    Ok(Some(device.send(group.log, Outgoing::to_all(line)).await?))
}

async fn stop(connections: Vec<Connection>) {
    for connection in connections {
        connection.stop().await;
    }
}

/// Prints each entry once, and takes it from the device's inbox then.
struct Listener<'a> {
    device: &'a Device,
    out: Output,
    only: Option<LogId>,
    /// What was printed from the inbox, and may come as an event, too.
    printed: BTreeSet<(LogId, u64)>,
}

impl Listener<'_> {
    async fn print_inbox(&mut self) -> Result<()> {
        loop {
            let page = self.device.inbox(self.only, PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            for received in page {
                self.print(&received).await?;
            }
        }
    }

    async fn on(&mut self, event: &Event) -> Result<()> {
        if self.only.is_some() && event.log().is_some() && event.log() != self.only {
            return Ok(());
        }
        if let Event::Entry(received) = event {
            return self.print(received).await;
        }
        self.out.event(event)
    }

    async fn print(&mut self, received: &Received) -> Result<()> {
        if self.printed.insert((received.log, received.seq)) {
            self.out.entry(received)?;
        }
        self.device.take(received).await?;
        Ok(())
    }
}
