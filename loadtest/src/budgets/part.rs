//! The parts of the run: scenarios that exist for their own sake, and which figures are read of each.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;

use super::budget::{Budget, LEAN_FAN_OUT};
use super::figures;
use super::judge::Taken;
use crate::append::{self, Rate};
use crate::ceiling::Ceilings;
use crate::frame::{self, Measurement, scenario};
use crate::report::Kept;
use crate::{catch_up, idle};

/// Longest that a part may take. The longest one takes seven minutes; this ends one that hangs.
const PART_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Entries a second at which hardly anything comes.
const TRICKLE: Rate = Rate::PerSecond(10);

/// Entries a second at which latency is taken, and where a run is shortened.
const PACED: u32 = 5_000;
const PACED_SHORT: u32 = 100;

/// A part of the run, with a relay and a database of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Saturation,
    GroupChat,
    CatchUp,
    Idle,
}

/// What decides how a part is taken, beside the part itself.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Entries a second that a lean server delivers on this machine; none if it is not known.
    pub(super) fan_out: Option<u32>,
    /// With few devices and for moments: nothing is judged.
    pub(super) short: bool,
}

/// What a part has shown.
pub(super) struct Shown {
    pub(super) figures: Vec<(Budget, Taken)>,
    pub(super) report: Kept,
}

impl Manner {
    /// What a lean server delivers, whether it was measured here or elsewhere.
    pub(super) fn lean_fan_out(self) -> f64 {
        self.fan_out.map_or(LEAN_FAN_OUT, f64::from)
    }

    fn paced(self) -> Rate {
        Rate::PerSecond(if self.short { PACED_SHORT } else { PACED })
    }
}

impl Part {
    /// The shortest first, so that what is wrong shows soon.
    pub(super) const ALL: [Self; 4] =
        [Self::Saturation, Self::GroupChat, Self::CatchUp, Self::Idle];

    /// The scenario that it is.
    pub(super) fn scenario(self) -> &'static str {
        match self {
            Self::Saturation => "saturation",
            Self::GroupChat => "group-chat",
            Self::CatchUp => "catch-up",
            Self::Idle => "idle",
        }
    }

    /// Whether its figures are told as ratios to what the machine does at best. Where nothing is judged,
    /// only of the part that has such a ratio as its budget.
    pub(super) fn has_ceilings(self, manner: Manner) -> bool {
        !manner.short || self == Self::Saturation
    }

    /// Whether runs of the same build differ by more than its budget is away.
    pub(super) fn is_repeated(self) -> bool {
        self != Self::Idle
    }

    /// What is changed of the scenario.
    fn options(self, manner: Manner) -> Vec<String> {
        let rates = format!("--rate {TRICKLE},{},max", manner.paced());
        let text = match (self, manner.short) {
            (Self::Saturation | Self::CatchUp, false) => "",
            (Self::GroupChat, false) => &rates,
            (Self::Idle, false) => "--sessions 1000,5000,10000",
            (Self::Saturation, true) => "--groups 4 --seconds 1 --warm-up 0 --ceiling-seconds 1",
            (Self::GroupChat, true) => &format!("{rates} --groups 4 --seconds 1 --warm-up 0"),
            (Self::CatchUp, true) => "--entries 300 --runs 2",
            (Self::Idle, true) => "--sessions 4,8 --body 1000 --rest 0 --after 0",
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Runs it, told where, and reads its figures.
    pub(super) async fn take(
        self,
        manner: Manner,
        title: String,
        mut given: Vec<OsString>,
    ) -> Result<Shown> {
        given.extend(self.options(manner).into_iter().map(OsString::from));
        let work = async {
            match self {
                Self::Saturation => {
                    let read = figures::of_saturation;
                    self.run::<append::Arguments>(title, &given, read).await
                }
                Self::GroupChat => {
                    let read = |measured: &_, ceilings: Option<&_>| {
                        let rates = [TRICKLE, manner.paced(), Rate::Max];
                        figures::of_group_chat(measured, ceilings, rates, manner.lean_fan_out())
                    };
                    self.run::<append::Arguments>(title, &given, read).await
                }
                Self::CatchUp => {
                    let read = |measured: &_, _: Option<&_>| figures::of_catch_up(measured);
                    self.run::<catch_up::Arguments>(title, &given, read).await
                }
                Self::Idle => {
                    let read = |measured: &_, _: Option<&_>| figures::of_idle(measured);
                    self.run::<idle::Arguments>(title, &given, read).await
                }
            }
        };
        timeout(PART_DEADLINE, Box::pin(work)).await.context("it has not ended in time")?
    }

    async fn run<M: Measurement>(
        self,
        title: String,
        given: &[OsString],
        read: impl Fn(&M::Measured, Option<&Ceilings>) -> Vec<(Budget, Taken)>,
    ) -> Result<Shown> {
        let framed = scenario::framed::<M>(self.scenario(), given)?;
        let taken = Box::pin(frame::take(&framed)).await?;
        let ceilings = taken.ceilings.as_ref();
        let figures = taken.runs.iter().flat_map(|run| read(run.figures(), ceilings));
        let hold = |(budget, figure): (Budget, Taken)| (budget, figure.hold(budget, ceilings));
        let figures = figures.map(hold).collect();
        Ok(Shown { figures, report: Kept::new(title, &framed.document(&taken))? })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_part_is_a_scenario_and_its_options_are_those_of_its_measurement() {
        for part in Part::ALL {
            for short in [false, true] {
                let manner = Manner { fan_out: None, short };
                let mut given = vec!["--relay".into(), "relay".into(), "--ceilings".into()];
                given.extend(part.options(manner).into_iter().map(OsString::from));
                let arguments = scenario::arguments(part.scenario(), &given).expect("a scenario");
                Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{part:?}: {error}"));
            }
        }
    }
}
