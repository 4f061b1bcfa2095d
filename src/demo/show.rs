//! Where the numbers go while the demo runs: the live screen on a terminal, plain lines elsewhere.

use super::progress::Progress;
use super::replica::Replica;
use super::screen::View;
use crate::admin::{Format, screen};
use ratatui::DefaultTerminal;
use std::io::{self, Write};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often keys are read and the screen is drawn; it is a person who waits.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// The screen takes new numbers every so many drawings.
const LOOK_EVERY: u32 = 5;
/// How often a plain line is printed.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Where the numbers go.
pub enum Show {
    /// The live screen.
    Screen(DefaultTerminal),
    /// Plain lines on standard output.
    Lines,
    /// Plain lines on standard error: standard output is for JSON.
    LinesAside,
}

impl Show {
    /// The live screen where standard output is a terminal and shall carry text, else plain lines.
    #[must_use]
    pub fn new(format: Format) -> Self {
        match format {
            Format::Json => Self::LinesAside,
            Format::Text if !is_interactive(format) => Self::Lines,
            // A terminal that cannot be made a screen still takes lines.
            Format::Text => ratatui::try_init().map_or(Self::Lines, Self::Screen),
        }
    }

    /// Shows progress. A key that quits sets `stop`, and ends this where that is set already.
    ///
    /// # Errors
    /// The terminal or the output cannot be written.
    pub async fn run(
        &mut self,
        mut view: View,
        progress: &Progress,
        replica: &dyn Replica,
        notice: watch::Receiver<Option<&'static str>>,
        stop: &watch::Sender<bool>,
    ) -> io::Result<()> {
        let mut ticks = interval(if matches!(self, Self::Screen(_)) { DRAW_EVERY } else { LINE_EVERY });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is now, and there is nothing to say yet.
        ticks.tick().await;
        for tick in 0_u32.. {
            ticks.tick().await;
            let screen = matches!(self, Self::Screen(_));
            if !screen || tick.is_multiple_of(LOOK_EVERY) {
                view.look(progress.numbers(true), replica.status().await, replica.oldest_waiting().await);
            }
            view.notice = *notice.borrow();
            match self {
                Self::Screen(terminal) => {
                    for _ in 0..screen::quits_pressed()? {
                        if stop.send_replace(true) {
                            return Ok(());
                        }
                    }
                    terminal.draw(|frame| view.draw(frame))?;
                }
                Self::Lines => writeln!(io::stdout(), "{view}")?,
                Self::LinesAside => writeln!(io::stderr(), "{view}")?,
            }
        }
        Ok(())
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if matches!(self, Self::Screen(_)) {
            ratatui::restore();
        }
    }
}

/// Whether a person watches: the demo then runs until it is told to stop.
#[must_use]
pub fn is_interactive(format: Format) -> bool {
    format == Format::Text && screen::is_interactive()
}
