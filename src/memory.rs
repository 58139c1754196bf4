//! Gives memory back to the system after a rush.
//!
//! jemalloc's own threads give free pages back, but only in lots: what is less than some thousand
//! pages in one of its arenas stays, and there are four arenas for each core. After ten thousand
//! sessions had left, that was two thirds of what the process still held. So the pages are asked for
//! every now and then, by setting the time after which they go to nothing and back. Settings can be
//! written safely; the call that gives pages back directly cannot.

use std::time::Duration;

use tikv_jemalloc_ctl::{Access, AsName, Result, arenas};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

/// How often. What is free is asked for again soon while the relay is busy, and then this costs some
/// hundred system calls.
const PAUSE: Duration = Duration::from_secs(30);

/// Gives back what is free, again and again.
pub(crate) async fn keep_giving_back() {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(failure) = give_back() {
            // Built with an allocator that cannot: it keeps what it likes.
            debug!(%failure, "the allocator gave nothing back");
            return;
        }
    }
}

fn give_back() -> Result<()> {
    for arena in 0..arenas::narenas::read()? {
        let setting = format!("arena.{arena}.dirty_decay_ms\0");
        let name = setting.as_bytes().name();
        // An arena that no thread has used yet has no setting.
        let Ok(usual) = Access::<isize>::read(name) else {
            continue;
        };
        name.write(0_isize)?;
        name.write(usual)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_back_leaves_the_settings_as_they_were() {
        let name = b"arena.0.dirty_decay_ms\0".name();
        let before = Access::<isize>::read(name).expect("jemalloc is linked");
        give_back().expect("given back");
        assert_eq!(Access::<isize>::read(name), Ok(before));
    }
}
