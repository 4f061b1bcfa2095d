//! `untorn top`: what a daemon does, as it goes on.

use super::Format;
use super::client::{AdminClient, ClientError};
use super::explain::Explanation;
use super::screen::{History, block, color, grouped, is_interactive, lag_bar, quits_pressed, rate, seconds};
use super::status::{CopyPhase, Role, State, Status, StreamStatus};
use crate::access::Address;
use crate::wal::HybridTime;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often the daemon is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often keys are read and the screen is drawn; it is a person who waits.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How long the screen waits for an answer before it says that none comes.
const ANSWER: Duration = Duration::from_secs(2);
/// The lag, in seconds, that fills a stream's bar.
const BAR_SECONDS: f64 = 5.0;

/// What is shown, and how.
pub struct Top {
    daemon: Address,
    format: Format,
}

impl Top {
    /// The daemon at this address.
    #[must_use]
    pub fn new(daemon: Address, format: Format) -> Self {
        Self { daemon, format }
    }

    /// Shows until somebody quits, or nobody reads any more.
    ///
    /// # Errors
    /// The daemon does not answer at first; without a screen, ever. Or the output failed.
    pub async fn run(self) -> Result<(), ClientError> {
        let mut client = AdminClient::connect(self.daemon.clone()).await?;
        if self.format == Format::Text && is_interactive() {
            let view = View { url: self.daemon.to_string(), ..View::default() };
            // A first answer that is a refusal is better told on the plain terminal.
            client.status().await?;
            return match ratatui::try_init() {
                Ok(mut terminal) => {
                    let shown = screen(client, view, &mut terminal).await;
                    ratatui::restore();
                    shown.map_err(ClientError::Output)
                }
                Err(error) => Err(ClientError::Output(error)),
            };
        }
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let status = client.status().await?;
            let text = match self.format {
                Format::Json => serde_json::to_string(&status).map_err(io::Error::from).map_err(ClientError::Output)?,
                Format::Text => status.to_string(),
            };
            let mut out = io::stdout().lock();
            match writeln!(out, "{text}").and_then(|()| out.flush()) {
                // Whoever read has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(ClientError::Output)?,
            }
        }
    }
}

async fn screen(mut client: AdminClient, mut view: View, terminal: &mut ratatui::DefaultTerminal) -> io::Result<()> {
    let mut ticks = interval(DRAW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked: Option<Instant> = None;
    loop {
        ticks.tick().await;
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            let since = looked.replace(Instant::now()).map_or(0.0, |looked| looked.elapsed().as_secs_f64());
            let asked = async { Ok::<_, ClientError>((client.status().await?, client.waiting().await?)) };
            match timeout(ANSWER, asked).await {
                Ok(Ok((status, waiting))) => view.look(status, waiting, since),
                Ok(Err(error)) => view.lost = Some(error.to_string()),
                Err(_) => view.lost = Some("it does not answer".into()),
            }
        }
        if quits_pressed()? > 0 {
            return Ok(());
        }
        terminal.draw(|frame| view.draw(frame))?;
    }
}

/// What the screen shows.
#[derive(Clone, Debug, Default)]
struct View {
    /// Where the daemon is.
    url: String,
    /// What it said last.
    status: Option<Status>,
    /// The transactions that have waited for longest.
    waiting: Vec<Explanation>,
    /// Transactions committed a second, between the last two looks.
    committed: u64,
    /// Records a second, by stream.
    records: BTreeMap<String, u64>,
    /// Commits a second at each look.
    history: History,
    /// Why there is no newer answer.
    lost: Option<String>,
}

impl View {
    /// Takes a new look, so many seconds after the last one.
    fn look(&mut self, status: Status, waiting: Vec<Explanation>, since: f64) {
        if let Some(before) = &self.status {
            let (now, then) = (status.transactions.committed_total, before.transactions.committed_total);
            self.committed = rate(now, then, since);
            self.history.push(self.committed);
            let records = |stream: &StreamStatus| {
                let then = before.streams.iter().find(|before| before.name == stream.name);
                let then = then.map_or(stream.records_total, |before| before.records_total);
                (stream.name.clone(), rate(stream.records_total, then, since))
            };
            self.records = status.streams.iter().map(records).collect();
        }
        self.status = Some(status);
        self.waiting = waiting;
        self.lost = None;
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some(status) = &self.status else {
            frame.render_widget(Line::from(" untorn top".bold()), frame.area());
            return;
        };
        let mut lines = stream_lines(self, status);
        let wanted = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
        let [title, top, streams, waits, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(7),
            Constraint::Max(wanted.max(3)),
            Constraint::Min(5),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let [left, right] = Layout::horizontal([Constraint::Length(40), Constraint::Min(20)]).areas(top);
        self.draw_title(frame, title, status);
        draw_whole(frame, left, status, self.committed);
        self.history.draw(frame, right, "commits a second");
        let room = usize::from(streams.height.saturating_sub(2));
        if lines.len() > room {
            lines.truncate(room.saturating_sub(1));
            lines.push(Line::from(" and more, of which `untorn status` tells".dim()));
        }
        let running = status.streams.iter().filter(|stream| stream.state == State::Running).count();
        let title_of_streams = format!("{running} of {} streams run", status.streams.len());
        frame.render_widget(Paragraph::new(lines).block(block(&title_of_streams)), streams);
        self.draw_waiting(frame, waits, status);
        self.draw_foot(frame, foot);
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let ready = if status.ready { "ready".green().bold() } else { "not ready".yellow().bold() };
        let role = match status.role {
            Role::Leader => "leader",
            Role::Standby => "standby",
        };
        let rest = format!(" · {role}, epoch {}", status.epoch.0);
        frame.render_widget(Line::from(vec![" untorn top · ".bold(), ready, rest.into()]), area);
        frame.render_widget(Line::from(format!("{} ", self.url)).alignment(Alignment::Right).dim(), area);
    }

    fn draw_waiting(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let mut lines = Vec::new();
        for waiting in &self.waiting {
            let age = format!(" for {}", seconds(waiting.since_seconds));
            let mut line = vec![format!(" {}", waiting.source_id).bold(), age.dim()];
            let missing: Vec<_> =
                waiting.involved.iter().filter(|tablet| !tablet.applying).map(|i| &*i.tablet).collect();
            if !missing.is_empty() {
                line.push(" · missing ".dim());
                line.push(missing.join(", ").yellow());
            }
            if waiting.behind_it > 0 {
                line.push(format!(" · {} behind it", grouped(waiting.behind_it)).dim());
            }
            lines.push(Line::from(line));
            if let Some(waits) = &waiting.waits_for {
                lines.push(Line::from(format!("   {}", waits.text)).yellow());
            }
        }
        if lines.is_empty() {
            lines.push(Line::from(" nothing waits".dim()));
        }
        let title = format!("{} wait to commit", grouped(status.transactions.waiting_to_commit));
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block(&title)), area);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut keys = vec![" q".bold(), " quits".dim()];
        if let Some(lost) = &self.lost {
            keys.push(format!(" · no answer: {lost}").red());
        }
        frame.render_widget(Line::from(keys), area);
    }
}

/// The whole replica: safe time, and transactions by where they stand.
fn draw_whole(frame: &mut Frame<'_>, area: Rect, status: &Status, committed: u64) {
    let lag = status.safe_time_lag_seconds;
    let lag_color = match lag {
        _ if status.safe_time.is_none() => Color::Yellow,
        lag if lag < BAR_SECONDS => Color::Green,
        lag if lag < 60.0 => Color::Yellow,
        _ => Color::Red,
    };
    let safe = match status.safe_time {
        Some(HybridTime::MAX) => vec![" no source".dim()],
        Some(_) => vec![Span::styled(format!("{:>9}", seconds(lag)), lag_color).bold(), " behind the source".dim()],
        None => vec![Span::styled(" no safe point yet", lag_color)],
    };
    let counts = &status.transactions;
    let count = |count: u64, of: &'static str| Line::from(vec![format!("{:>9}", grouped(count)).bold(), of.dim()]);
    let lines = vec![
        Line::from(safe),
        match &status.held_by {
            Some(stream) => Line::from(vec![" held by ".dim(), stream.clone().bold()]).alignment(Alignment::Left),
            None => Line::default(),
        },
        count(committed, " committed a second"),
        count(counts.pending, " open"),
        count(counts.committed_not_applied, " being applied"),
    ];
    frame.render_widget(Paragraph::new(lines).block(block("safe time").border_style(Style::new().fg(lag_color))), area);
}

/// Each stream, those first that somebody must look at: what does not run, then what holds safe time.
fn stream_lines(view: &View, status: &Status) -> Vec<Line<'static>> {
    let width = status.streams.iter().map(|stream| stream.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut streams: Vec<_> = status.streams.iter().collect();
    streams.sort_by_key(|stream| (stream.state == State::Running, status.held_by.as_ref() != Some(&stream.name)));
    for stream in streams {
        let records = view.records.get(&stream.name).copied().unwrap_or(0);
        let state = match stream.state {
            State::Running => "running",
            State::Copying => "copying",
            State::Stopped => "stopped",
            State::Waiting => "waiting",
        };
        let mut line = vec![
            format!(" {:<width$} ", stream.name).bold(),
            Span::styled(format!("{state} "), color(stream.state)),
            lag_bar(stream, BAR_SECONDS),
            format!(" {:>7}", seconds(stream.lag_seconds)).bold(),
            format!(" {:>9} rec/s", grouped(records)).into(),
            format!("  at {}", stream.durable).dim(),
        ];
        if stream.copy.state != CopyPhase::Done {
            line.push(format!("  copy {}", stream.copy).yellow());
        }
        if status.held_by.as_ref() == Some(&stream.name) {
            line.push(" ◂ safe".dim());
        }
        lines.push(Line::from(line));
        if let Some(cause) = &stream.cause {
            lines.push(Line::from(Span::styled(format!("   {cause}"), color(stream.state))));
        }
    }
    if lines.is_empty() {
        lines.push(Line::from(" no streams".dim()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::{explain, status};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn everything_is_on_the_screen() {
        let mut view = View { url: "http://127.0.0.1:7100".into(), ..View::default() };
        let first = status::tests::sample();
        let mut second = first.clone();
        second.transactions.committed_total += 3_000;
        second.streams[0].records_total += 8_400;
        view.look(first, Vec::new(), 0.0);
        view.look(second, vec![explain::tests::sample()], 2.0);
        view.lost = Some("it does not answer".into());
        let mut terminal = Terminal::new(TestBackend::new(90, 26)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        let shown = [
            "untorn top · not ready · leader, epoch 3",
            "http://127.0.0.1:7100",
            "2500 ms behind the source",
            "held by shard-b",
            "1,500 committed a second",
            "most 1,500",
            "1 of 2 streams run",
            "shard-a running ",
            "4,200 rec/s  at 1/6B374D00",
            "stopped ██████████    60 s",
            "copy pending",
            "the counts do not match",
            "2 wait to commit",
            "order-4711 for 1500 ms · missing shard-b · 4 behind it",
            "shard-b has not said that it carried everything.",
            "q quits · no answer: it does not answer",
        ];
        for part in shown {
            assert!(text.contains(part), "{part:?} is not on the screen:\n{text}");
        }
    }

    #[test]
    fn of_many_streams_those_that_need_somebody_are_on_the_screen() {
        let mut view = View::default();
        let mut status = status::tests::sample();
        let stream = status.streams.iter().find(|stream| stream.state == State::Running).unwrap().clone();
        let named = |number| StreamStatus { name: format!("shard-{number}"), ..stream.clone() };
        status.streams = (0..64).map(named).collect();
        status.streams[63].state = State::Stopped;
        status.held_by = Some("shard-40".into());
        view.look(status, Vec::new(), 0.0);
        let mut terminal = Terminal::new(TestBackend::new(90, 26)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for part in ["63 of 64 streams run", "shard-63 stopped", "shard-40 running", "and more"] {
            assert!(text.contains(part), "{part:?} is not on the screen:\n{text}");
        }
    }
}
