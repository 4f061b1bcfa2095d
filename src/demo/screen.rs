//! The live screen, drawn from what is known and nothing else: no terminal, no clock.

use super::progress::{Latency, Numbers};
use crate::admin::explain::{Explanation, WaitsFor};
use crate::admin::screen::{History, block, grouped, lag_bar, rate, seconds};
use crate::admin::status::{State, Status, TransactionCounts};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Padding, Paragraph, Wrap};
use std::fmt;

/// The lag that fills a stream's bar.
const BAR_SECONDS: f64 = 0.1;

/// What the screen shows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Tablets of the source universe.
    pub source_tablets: usize,
    /// Tablets of the replica universe.
    pub replica_tablets: usize,
    /// Whether the gate is on.
    pub gate: bool,
    /// The numbers now.
    pub numbers: Numbers,
    /// Visible transactions, their rows and snapshots, a second, between the last two looks.
    pub rates: [u64; 3],
    /// Transactions a second at each look, newest last.
    pub history: History,
    /// What the pipeline does.
    pub status: Option<Status>,
    /// The transaction that has waited to commit for longest.
    pub oldest: Option<Explanation>,
    /// Where `status`, `explain` and `scan` are answered.
    pub admin: Option<String>,
    /// What the demo is doing besides, if anything: coming up, or comparing at its end.
    pub notice: Option<&'static str>,
}

impl View {
    /// Takes a new look.
    pub fn look(&mut self, numbers: Numbers, status: Option<Status>, oldest: Option<Explanation>) {
        let since = numbers.elapsed.saturating_sub(self.numbers.elapsed).as_secs_f64();
        if since > 0.0 {
            self.rates = [
                rate(numbers.visible, self.numbers.visible, since),
                rate(numbers.visible_rows, self.numbers.visible_rows, since),
                rate(numbers.snapshots, self.numbers.snapshots, since),
            ];
            self.history.push(self.rates[0]);
        }
        self.numbers = numbers;
        self.status = status;
        self.oldest = oldest;
    }

    fn counts(&self) -> TransactionCounts {
        self.status.as_ref().map(|status| status.transactions).unwrap_or_default()
    }

    /// Draws everything.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [title, top, rates, bottom, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(8),
            Constraint::Min(4),
            Constraint::Length(8),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(top);
        let [streams, waits] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(bottom);
        self.draw_title(frame, title);
        self.draw_transactions(frame, left);
        self.draw_torn(frame, right);
        self.history.draw(frame, rates, "transactions a second");
        self.draw_streams(frame, streams);
        self.draw_waits(frame, waits);
        self.draw_foot(frame, foot);
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect) {
        let gate = if self.gate { "gate on".green() } else { "GATE OFF".red().bold() };
        let tablets =
            format!(" · {} source tablets → {} replica tablets · ", self.source_tablets, self.replica_tablets);
        let seconds = self.numbers.elapsed.as_secs();
        frame.render_widget(Line::from(vec![" untorn demo".bold(), tablets.into(), gate]), area);
        let clock = format!("{:02}:{:02} ", seconds / 60, seconds % 60);
        frame.render_widget(Line::from(clock).alignment(Alignment::Right), area);
    }

    fn draw_transactions(&self, frame: &mut Frame<'_>, area: Rect) {
        let [transactions, rows, _] = self.rates;
        let Latency { p50, p99, .. } = self.numbers.recent;
        let pair = |left: String, unit: &'static str, right: String, other: &'static str| {
            Line::from(vec![
                format!(" {left:>9}").bold(),
                format!("{unit:<8}").dim(),
                format!("{right:>9}").bold(),
                other.dim(),
            ])
        };
        let count = |count: u64| format!(" {:>9}", grouped(count)).bold();
        let lines = vec![
            Line::from(vec![count(self.numbers.visible).cyan(), " committed and visible".dim()]),
            Line::from(vec![count(self.numbers.in_flight as u64), " committed and on their way".dim()]),
            pair(grouped(transactions), " /s", grouped(rows), " rows/s"),
            Line::default(),
            Line::from(" commit → visible".dim()),
            pair(format!("{p50:.1}"), " ms p50", format!("{p99:.1}"), " ms p99"),
        ];
        frame.render_widget(Paragraph::new(lines).block(block("transactions")), area);
    }

    fn draw_torn(&self, frame: &mut Frame<'_>, area: Rect) {
        let color = if self.numbers.torn == 0 { Color::Green } else { Color::Red };
        let mut lines = vec![Line::default()];
        lines.extend(big(self.numbers.torn).map(|row| Line::from(row).style(Style::new().fg(color).bold())));
        lines.push(match &self.numbers.last_torn {
            Some(wrong) => Line::from(wrong.clone()).red(),
            None => Line::default(),
        });
        let read = format!("of {} snapshots read, {} /s", grouped(self.numbers.snapshots), self.rates[2]);
        lines.push(Line::from(read).dim());
        let block = block("torn snapshots").border_style(Style::new().fg(color));
        frame.render_widget(Paragraph::new(lines).alignment(Alignment::Center).block(block), area);
    }

    fn draw_streams(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(2));
        let mut lines = Vec::new();
        for stream in self.status.iter().flat_map(|status| &status.streams).take(room) {
            let holds = self.status.as_ref().and_then(|status| status.held_by.as_ref()) == Some(&stream.name);
            let word = match stream.state {
                State::Running if holds => " ◂ safe".dim(),
                State::Running => "".into(),
                State::Stopped => " stopped".red(),
                State::Waiting => " waiting".yellow(),
                State::Copying => " copying".yellow(),
            };
            let lag = format!(" {:>6}", seconds(stream.lag_seconds));
            let name = format!(" {:<10.10} ", stream.name);
            lines.push(Line::from(vec![name.into(), lag_bar(stream, BAR_SECONDS), lag.bold(), word]));
        }
        frame.render_widget(Paragraph::new(lines).block(block("streams, lag")), area);
    }

    fn draw_waits(&self, frame: &mut Frame<'_>, area: Rect) {
        let counts = self.counts();
        let count = |count: u64, of: &'static str| Line::from(vec![format!("{:>6}", grouped(count)).bold(), of.dim()]);
        let mut lines = vec![
            count(counts.waiting_to_commit, " wait to commit"),
            count(counts.pending, " are open"),
            count(counts.committed_not_applied, " are being applied"),
        ];
        if let Some(Explanation { source_id, since_seconds, waits_for: Some(waits), .. }) = &self.oldest {
            let since = format!(" for {}", seconds(*since_seconds));
            lines.push(Line::from(vec![source_id.clone().bold(), since.dim()]));
            lines.push(Line::from(waits.text.clone()).yellow());
        }
        let paragraph = Paragraph::new(lines)
            .wrap(Wrap { trim: false })
            .block(block("who waits for whom").padding(Padding::left(1)));
        frame.render_widget(paragraph, area);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut keys = vec![" q".bold(), " quits".dim()];
        match (self.notice, &self.admin) {
            (Some(notice), _) => keys.extend([" · ".dim(), notice.yellow()]),
            (None, Some(admin)) => keys.push(format!(" · untorn status, explain, scan: {admin}").dim()),
            (None, None) => {}
        }
        frame.render_widget(Line::from(keys), area);
    }
}

/// The plain line, once a second where there is no terminal.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [transactions, rows, _] = self.rates.map(grouped);
        let Latency { p50, p99, .. } = self.numbers.recent;
        write!(f, "{:>4}s  {transactions} txn/s  {rows} rows/s", self.numbers.elapsed.as_secs())?;
        write!(f, "  commit→visible p50 {p50:.1} p99 {p99:.1} ms  {} wait", self.counts().waiting_to_commit)?;
        if let Some(Explanation { source_id, since_seconds, waits_for: Some(waits), .. }) = &self.oldest
            && let WaitsFor { tablet: Some(tablet), .. } = waits
        {
            write!(f, " ({source_id} for {tablet}, {})", seconds(*since_seconds))?;
        }
        write!(f, "  snapshots {}  torn {}", grouped(self.numbers.snapshots), grouped(self.numbers.torn))
    }
}

/// A number three lines high.
fn big(number: u64) -> [String; 3] {
    const DIGITS: [[&str; 3]; 10] = [
        ["█▀█", "█ █", "▀▀▀"],
        ["▀█ ", " █ ", "▀▀▀"],
        ["▀▀█", "█▀▀", "▀▀▀"],
        ["▀▀█", " ▀█", "▀▀▀"],
        ["█ █", "▀▀█", "  ▀"],
        ["█▀▀", "▀▀█", "▀▀▀"],
        ["█▀▀", "█▀█", "▀▀▀"],
        ["▀▀█", "  █", "  ▀"],
        ["█▀█", "█▀█", "▀▀▀"],
        ["█▀█", "▀▀█", "▀▀▀"],
    ];
    let digits = number.to_string();
    let glyphs: Vec<_> = digits.bytes().map(|digit| DIGITS[usize::from(digit - b'0')]).collect();
    [0, 1, 2].map(|row| glyphs.iter().map(|glyph| glyph[row]).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::explain::{Cause, TransactionStatus};
    use crate::admin::status::{CopyPhase, CopyStatus, Position, Role, StreamStatus};
    use crate::wal::{Epoch, OpId};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::Duration;

    fn view(torn: u64) -> View {
        let admin = Some("http://127.0.0.1:7100".into());
        let mut view = View { source_tablets: 4, replica_tablets: 3, gate: torn == 0, admin, ..View::default() };
        let position = Position::OpId(OpId::ZERO);
        let streams = ["source-1", "source-2", "source-3"].map(|name| StreamStatus {
            name: name.into(),
            state: State::Running,
            cause: None,
            received: position,
            durable: position,
            checkpointed: position,
            lag_seconds: 0.042,
            records_total: 0,
            copy: CopyStatus { state: CopyPhase::Done, ..CopyStatus::default() },
        });
        let numbers = Numbers {
            elapsed: Duration::from_secs(2),
            visible: 20_000,
            visible_rows: 76_000,
            snapshots: 130,
            torn,
            last_torn: (torn > 0).then(|| "at latest: 3 of a transfer's 4 accounts".into()),
            recent: Latency { p50: 21.34, p99: 60.2, p999: 70.0 },
            ..Numbers::default()
        };
        let status = Status {
            ready: true,
            role: Role::Leader,
            epoch: Epoch(1),
            safe_time: None,
            safe_time_lag_seconds: 0.0,
            held_by: Some("source-3".into()),
            streams: streams.to_vec(),
            transactions: TransactionCounts { waiting_to_commit: 212, ..TransactionCounts::default() },
        };
        let oldest = Explanation {
            transaction: "x1".into(),
            source_id: "transfer-4711".into(),
            status: TransactionStatus::WaitingToCommit,
            since_seconds: 0.028,
            commit_known: true,
            involved: Vec::new(),
            waits_for: Some(WaitsFor {
                cause: Cause::Applying,
                tablet: Some("source-3".into()),
                text: "source-3 has not sent its Applying record".into(),
            }),
            behind_it: 7,
        };
        view.look(numbers, Some(status), Some(oldest));
        view
    }

    fn drawn(view: &View, width: u16, height: u16) -> (String, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        (terminal.backend().to_string(), terminal)
    }

    #[test]
    fn everything_fits_in_eighty_by_twenty_four() {
        let (text, _) = drawn(&view(0), 80, 24);
        let shown = [
            "untorn demo · 4 source tablets → 3 replica tablets · gate on",
            "00:02",
            "20,000 committed and visible",
            "10,000 /s",
            "38,000 rows/s",
            "21.3 ms p50",
            "60.2 ms p99",
            "torn snapshots",
            "█ █",
            "of 130 snapshots read, 65 /s",
            "most 10,000",
            "source-1",
            "████······",
            "42 ms ◂ safe",
            "212 wait to commit",
            "transfer-4711 for 28 ms",
            "source-3 has not sent its Applying",
            "q quits · untorn status, explain, scan: http://127.0.0.1:7100",
        ];
        for part in shown {
            assert!(text.contains(part), "{part:?} is not on the screen:\n{text}");
        }
    }

    #[test]
    fn the_torn_counter_is_green_at_zero_and_red_above() {
        let color = |torn| {
            let (text, terminal) = drawn(&view(torn), 80, 24);
            let cells = terminal.backend().buffer().content().to_vec();
            let digit = cells.iter().skip(40 + 3 * 80).take(40).find(|cell| "█▀".contains(cell.symbol())).cloned();
            (digit.unwrap_or_else(|| panic!("no digit:\n{text}")).fg, text)
        };
        assert_eq!(color(0).0, Color::Green);
        let (red, text) = color(1_234);
        assert_eq!(red, Color::Red);
        assert!(text.contains("GATE OFF"), "{text}");
        assert!(text.contains("▀█  ▀▀█ ▀▀█ █ █"), "{text}");
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (200, 60)] {
            drawn(&view(9), width, height);
        }
    }

    #[test]
    fn the_plain_line_says_the_same() {
        assert_eq!(
            view(0).to_string(),
            "   2s  10,000 txn/s  38,000 rows/s  commit→visible p50 21.3 p99 60.2 ms  212 wait (transfer-4711 for source-3, \
             28 ms)  snapshots 130  torn 0"
        );
    }
}
