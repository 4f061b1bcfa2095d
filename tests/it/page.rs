//! The status page in a real browser.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use untorn::admin::explain::{Cause, Explanation, Involved, TransactionStatus, WaitsFor};
use untorn::admin::health::Health;
use untorn::admin::scan::{Scan, ScanAt, ScanError};
use untorn::admin::status::{CopyPhase, CopyStatus, Position, Role, State, Status, StreamStatus, TransactionCounts};
use untorn::admin::verify::{Event, VerifyError};
use untorn::admin::{Inspect, server};
use untorn::wal::{Epoch, HybridTime};

/// How long the browser may take: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(120);
/// A gid that would be a script if the page took it for markup.
const GID: &str = "<img src=x onerror=\"document.title='torn'\">";

/// A daemon that has one stream of each kind, and one transaction that waits.
struct Shown {
    looks: AtomicU64,
    ready: bool,
}

fn stream(name: &str, state: State, cause: Option<&str>, copy: CopyStatus, records_total: u64) -> StreamStatus {
    let position = Position::Lsn(0x1_6B37_4D28);
    let lag_seconds = if cause.is_some() { 190.0 } else { 0.042 };
    StreamStatus {
        name: name.into(),
        state,
        cause: cause.map(str::to_owned),
        received: position,
        durable: position,
        checkpointed: position,
        lag_seconds,
        records_total,
        copy,
    }
}

#[async_trait]
impl Inspect for Shown {
    async fn status(&self) -> Status {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let done =
            CopyStatus { state: CopyPhase::Done, rows: 1_200_000, total: Some(1_200_000), ..CopyStatus::default() };
        let running =
            CopyStatus { state: CopyPhase::Running, rows: 400_000, total: Some(1_600_000), ..CopyStatus::default() };
        Status {
            ready: self.ready,
            role: Role::Leader,
            epoch: Epoch(3),
            safe_time: self.ready.then(|| HybridTime::from_micros(micros)),
            safe_time_lag_seconds: 0.042,
            held_by: self.ready.then(|| "shard-b".into()),
            streams: vec![
                stream("shard-a", State::Running, None, done.clone(), looks * 9_000),
                stream("shard-b", State::Stopped, Some("its slot untorn_b is gone"), done, 5),
                stream("shard-c", State::Copying, None, running, 0),
            ],
            transactions: TransactionCounts {
                pending: 3,
                waiting_to_commit: 7,
                committed_not_applied: 12,
                oldest_waiting_seconds: 61.0,
                committed_total: looks * 2_400,
                aborted_total: 0,
            },
        }
    }

    async fn verify_tables(&self) -> Result<Vec<String>, VerifyError> {
        Ok(Vec::new())
    }

    fn verify(&self, _: &str) -> BoxStream<'static, Result<Event, VerifyError>> {
        futures::stream::empty().boxed()
    }

    async fn explain(&self, _: &str) -> Vec<Explanation> {
        Vec::new()
    }

    async fn waiting(&self) -> Vec<Explanation> {
        let involved = |tablet: &str, applying| Involved {
            tablet: tablet.into(),
            applying,
            records: 3,
            expected: None,
            position: Position::Lsn(7),
            lag_seconds: 0.1,
        };
        vec![Explanation {
            transaction: "x12".into(),
            source_id: GID.into(),
            status: TransactionStatus::WaitingToCommit,
            since_seconds: 61.0,
            commit_known: true,
            involved: vec![involved("shard-a", true), involved("shard-b", false)],
            waits_for: Some(WaitsFor {
                cause: Cause::StoppedStream,
                tablet: Some("shard-b".into()),
                text: "shard-b has not sent all of it; shard-b has stopped: its slot untorn_b is gone".into(),
            }),
            behind_it: 6,
        }]
    }

    async fn scan(&self, table: &str, _: ScanAt) -> Result<Scan, ScanError> {
        Err(ScanError::UnknownTable(table.to_owned()))
    }
}

/// Serves the page, and answers its address.
async fn serve(ready: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shown = Arc::new(Shown { looks: AtomicU64::new(0), ready });
    tokio::spawn(server::admin(listener, shown, Health::default(), std::future::pending()));
    format!("http://{address}/")
}

/// The browser's output, with these arguments, after the page has looked a few times.
async fn browse(arguments: &[&str], url: &str) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]);
    command.args(["--virtual-time-budget=4000", "--window-size=1100,1000"]).args(arguments);
    command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
    command.stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, run).await.expect("the browser ends").unwrap();
    output.expect("chromium starts; install it with: apt-get install chromium")
}

fn is_picture(file: &Path) -> bool {
    std::fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_the_daemon_says() {
    let url = serve(true).await;
    let output = browse(&["--dump-dom"], &url).await;
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = [
        "<title>untorn · 42 ms behind</title>",
        ">ready</span>",
        "leader · epoch 3",
        "42 ms behind",
        "Readers see everything that was committed until ",
        "shard-b decides how far it may go",
        "its slot untorn_b is gone",
        "1,200,000 rows",
        "400,000 of 1,600,000",
        "1/6B374D28",
        "&lt;img src=x onerror=",
        "✓ shard-a · 3 records",
        "shard-b is missing",
        "for 61 s · 6 wait behind it",
        "and 6 younger ones",
    ];
    for part in shown {
        assert!(
            page.contains(part),
            "{part:?} is not on the page:\n{page}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // Rates are made of two looks.
    assert!(!page.contains("<b id=\"rate\">–</b>"), "{page}");
    assert!(!page.contains("<img"), "what a source names is no markup");

    let folder = tempfile::tempdir().unwrap();
    for (theme, scheme) in [("light", 1), ("dark", 0)] {
        let file = folder.path().join(format!("{theme}.png"));
        let shot = format!("--screenshot={}", file.display());
        browse(&[&shot, &format!("--blink-settings=preferredColorScheme={scheme}")], &url).await;
        assert!(is_picture(&file), "{theme}");
    }
    let pictures = ["light", "dark"].map(|theme| std::fs::read(folder.path().join(format!("{theme}.png"))).unwrap());
    assert!(pictures[0] != pictures[1], "light and dark look the same");
    if let Ok(kept) = std::env::var("UNTORN_PICTURES") {
        for (theme, picture) in ["light", "dark"].iter().zip(pictures) {
            std::fs::write(Path::new(&kept).join(format!("page-{theme}.png")), picture).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_that_nothing_may_be_read_yet() {
    let page = browse(&["--dump-dom"], &serve(false).await).await;
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    for part in [">not ready</span>", "not yet", "There is no safe point yet"] {
        assert!(page.contains(part), "{part:?} is not on the page:\n{page}");
    }
}
