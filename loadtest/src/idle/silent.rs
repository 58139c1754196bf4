//! Those who have come and say nothing: in this process, or, where they are too many for its open files,
//! in several.

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use sealwire_client::wire::Wire;
use sealwire_protocol::RelayFrame;
use sealwire_protocol::frame::Ping;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Arguments, circle};
use crate::crowd::Crowd;
use crate::limits::SETUPS_MAX;
use crate::parts::{self, Hand, Order, Orders, Share, Word};
use crate::progress;

/// All of them.
pub(super) enum Silent {
    Here(Here),
    Apart(Vec<Hand>),
}

/// Those of this process.
pub(super) struct Here {
    crowd: Crowd,
    plan: circle::Plan,
    stop: watch::Sender<bool>,
    sessions: JoinSet<Result<()>>,
}

/// What a part of the crowd is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part {
    url: String,
    most: usize,
    share: Share,
    plan: circle::Plan,
}

impl Silent {
    /// Prepares for as many as will come.
    pub(super) async fn prepare(arguments: &Arguments, url: &str) -> Result<Self> {
        let Arguments { members, groups, body, process_max, .. } = *arguments;
        let plan = circle::Plan { members, groups, body };
        let most = arguments.sessions.last().copied().unwrap_or_default();
        let parts = parts::needed(most / members, members, process_max)?;
        if parts == 1 {
            return Ok(Self::Here(Here::new(Crowd::new(url, most)?, plan)));
        }
        let mut hands = Vec::with_capacity(parts);
        for number in 0..parts {
            let share = Share { number, parts };
            let part = Part { url: url.to_owned(), most, share, plan };
            hands.push(Hand::start(&Order::Idle(part)).await?);
        }
        Ok(Self::Apart(hands))
    }

    /// Lets this many more devices come, greet each other and fall silent.
    pub(super) async fn arrive(&mut self, devices: usize, members: usize) -> Result<()> {
        let hands = match self {
            Self::Here(here) => return here.arrive(devices).await,
            Self::Apart(hands) => hands,
        };
        let (circles, parts) = (devices / members, hands.len());
        let line = progress::wait("devices come in several processes");
        for (number, hand) in hands.iter_mut().enumerate() {
            let share = Share { number, parts };
            hand.tell(&Order::Arrive(share.of(circles) * members)).await?;
        }
        for hand in hands {
            hand.is_done().await?;
        }
        line.finish_and_clear();
        Ok(())
    }

    /// Refuses if a session has ended.
    pub(super) fn are_all_here(&mut self) -> Result<()> {
        match self {
            Self::Here(here) => here.are_all_here(),
            Self::Apart(hands) => hands.iter_mut().try_for_each(Hand::is_here),
        }
    }

    /// All leave at once and without a word, as when a network goes away.
    pub(super) async fn leave(self) -> Result<()> {
        match self {
            Self::Here(mut here) => {
                here.stop.send_replace(true);
                while here.sessions.join_next().await.is_some() {}
            }
            Self::Apart(hands) => {
                let ends = hands.into_iter().map(Hand::end);
                futures_util::future::try_join_all(ends).await?;
            }
        }
        Ok(())
    }
}

impl Here {
    fn new(crowd: Crowd, plan: circle::Plan) -> Self {
        Self { crowd, plan, stop: watch::Sender::new(false), sessions: JoinSet::new() }
    }

    async fn arrive(&mut self, devices: usize) -> Result<()> {
        let bar = progress::bar(devices as u64, "devices");
        let wires: Vec<Wire> = stream::iter(0..devices / self.plan.members)
            .map(|_| Box::pin(circle::gather(&self.crowd, self.plan)))
            .buffer_unordered(SETUPS_MAX)
            .inspect_ok(|wires| bar.inc(wires.len() as u64))
            .try_concat()
            .await?;
        bar.finish_and_clear();
        for wire in wires {
            self.sessions.spawn(fall_silent(wire, self.stop.subscribe()));
        }
        Ok(())
    }

    fn are_all_here(&mut self) -> Result<()> {
        self.sessions.try_join_next().map_or(Ok(()), ended)
    }
}

impl Part {
    /// Does as it is told, until nobody tells it anything. Its process ends then, and all connections
    /// with it.
    pub(crate) async fn run(self, mut orders: Orders) -> Result<()> {
        let crowd = Crowd::part(&self.url, self.most, self.share)?;
        let mut here = Here::new(crowd, self.plan);
        loop {
            tokio::select! {
                order = orders.next() => match order? {
                    Some(Order::Arrive(devices)) => {
                        here.arrive(devices).await?;
                        parts::say(&Word::Done)?;
                    }
                    Some(Order::Idle(_) | Order::Append(_) | Order::Begin(_) | Order::Cut) => {
                        bail!("an order that the silent do not follow");
                    }
                    None => return Ok(()),
                },
                Some(session) = here.sessions.join_next() => return ended(session),
            }
        }
    }
}

fn ended(session: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    session.context("a silent session has panicked")??;
    bail!("a silent session has ended")
}

/// Keeps a session open: answers heartbeats and says nothing else.
async fn fall_silent(mut wire: Wire, mut stopped: watch::Receiver<bool>) -> Result<()> {
    loop {
        tokio::select! {
            // Dropped without a word: a mass disconnect is a network that went away.
            _ = stopped.changed() => return Ok(()),
            envelope = wire.receive() => {
                let envelope = envelope.context("a silent session has ended")?;
                if envelope.request == 0 && matches!(envelope.frame, Ok(RelayFrame::Heartbeat(_))) {
                    wire.queue(&Ping {}.into());
                }
            }
        }
    }
}
