//! What live screens share: `untorn top` and the demo's. Drawn from what is known, no clock; the terminal's keys.

use super::status::{State, StreamStatus};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Sparkline};
use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// Rates that a sparkline remembers: more than the widest screen shows.
const RATES_MAX: usize = 512;
/// The width of a bar.
const BAR: usize = 10;

/// Rates, one a look, newest last.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<u64>);

impl History {
    /// Adds the newest.
    pub fn push(&mut self, rate: u64) {
        self.0.push_back(rate);
        if self.0.len() > RATES_MAX {
            self.0.pop_front();
        }
    }

    /// Draws as many as there is room for.
    pub fn draw(&self, frame: &mut Frame<'_>, area: Rect, title: &str) {
        let block = block(title);
        let width = usize::from(block.inner(area).width);
        let data: Vec<u64> = self.0.iter().copied().skip(self.0.len().saturating_sub(width)).collect();
        let best = data.iter().max().copied().unwrap_or(0);
        let block = block.title_top(Line::from(format!(" most {} ", grouped(best))).right_aligned().dim());
        frame.render_widget(Sparkline::default().data(data).style(Color::Cyan).block(block), area);
    }
}

/// A frame with a title.
#[must_use]
pub fn block(title: &str) -> Block<'static> {
    let title = Line::from(format!(" {title} ")).style(Style::new().add_modifier(Modifier::BOLD));
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().dim()).title(title)
}

/// A stream's lag as a bar that `full` seconds fill, in the color of its state.
#[must_use]
pub fn lag_bar(stream: &StreamStatus, full: f64) -> Span<'static> {
    let filled = ((stream.lag_seconds / full).clamp(0.0, 1.0) * BAR as f64).round() as usize;
    Span::styled(format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled)), color(stream.state))
}

/// The color of a stream's state.
#[must_use]
pub const fn color(state: State) -> Color {
    match state {
        State::Running => Color::Cyan,
        State::Stopped => Color::Red,
        State::Waiting | State::Copying => Color::Yellow,
    }
}

/// Seconds as people read them.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{:.0} ms", s * 1_000.0),
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3_600.0),
    }
}

/// A number with its thousands set apart.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What comes more a second, rounded.
#[must_use]
pub fn rate(now: u64, before: u64, seconds: f64) -> u64 {
    if seconds > 0.0 { (now.saturating_sub(before) as f64 / seconds).round() as u64 } else { 0 }
}

/// Whether a person watches standard output.
#[must_use]
pub fn is_interactive() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// How many keys that quit were pressed since the last look.
///
/// # Errors
/// The terminal cannot be read.
pub fn quits_pressed() -> io::Result<usize> {
    let mut pressed = 0;
    while event::poll(Duration::ZERO)? {
        pressed += usize::from(quits(&event::read()?));
    }
    Ok(pressed)
}

/// Ctrl-C is a key like any other while the screen is on.
fn quits(event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, .. }) = event else { return false };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_quit() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(quits(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(quits(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(quits(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!quits(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!quits(&Event::FocusGained));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0421, 9.9, 12.0, 720.0, 40_000.0].map(seconds), ["42 ms", "9900 ms", "12 s", "12 min", "11 h"]);
        assert_eq!((rate(30, 10, 2.0), rate(10, 30, 2.0), rate(30, 10, 0.0)), (10, 0, 0));
    }
}
