//! A line that shows that something is going on, on a terminal and only there.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Waits for `work`; from the first second on a terminal is told what is waited for.
pub async fn waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let second = Duration::from_secs(1);
    let mut ticks = interval_at(started + second, second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut shown = false;
    loop {
        tokio::select! {
            result = &mut work => {
                if shown {
                    // Clears the line again.
                    eprint(format_args!("\r\x1b[2K"));
                }
                return result;
            }
            _ = ticks.tick() => {
                shown = true;
                eprint(format_args!("\r\x1b[2K{what} ... {} s", started.elapsed().as_secs()));
            }
        }
    }
}

fn eprint(text: std::fmt::Arguments<'_>) {
    let mut stderr = io::stderr().lock();
    // A terminal that is gone is no reason to stop working.
    let _ = stderr.write_fmt(text).and_then(|()| stderr.flush());
}
