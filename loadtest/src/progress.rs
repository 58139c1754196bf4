//! Progress for whoever watches; no bars where the output is no terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether somebody else shows progress.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Shows nothing from now on: this process is a part of another one's work.
pub(crate) fn hide() {
    HIDDEN.store(true, Ordering::Relaxed);
}

/// A bar that counts to `total`.
pub(crate) fn bar(total: u64, what: &'static str) -> ProgressBar {
    if HIDDEN.load(Ordering::Relaxed) {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:28} {bar:30} {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// Says what begins, also where nobody watches: a run of many parts takes long.
pub(crate) fn say(what: &str) {
    eprintln!("{what}");
}

/// A line with a clock, for what has no count.
pub(crate) fn wait(what: &'static str) -> ProgressBar {
    if HIDDEN.load(Ordering::Relaxed) {
        return ProgressBar::hidden();
    }
    let line = ProgressBar::new_spinner().with_message(what);
    line.enable_steady_tick(Duration::from_millis(200));
    line
}
