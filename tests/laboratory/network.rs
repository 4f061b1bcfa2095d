//! `network`: the daemon reaches its source's servers and its replica tablets through proxies, which fail while money
//! moves; and processes at either end stand still (SIGSTOP). No read is torn meanwhile, and once it is healed the replica
//! comes to the source by itself.

use super::oracle::Oracle;
use super::postgres_e2e::{Tellers, bank};
use super::proxy::{Fault, Proxy};
use super::report::{Options, Report};
use super::support::daemon::{Daemon, source_tablet};
use super::support::tables::until_equal;
use super::trial::{self, Counts, count};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// The kinds of faults.
const KINDS: [&str; 8] =
    ["cut_at_byte", "reset", "blackhole", "bandwidth", "delay", "daemon_stopped", "walsender_stopped", "half_open"];
/// Each kind in CI.
const OF_EACH: u64 = 2;

/// Runs it. `--n` is the number of faults.
pub fn run(options: &Options) -> Report {
    let kinds = KINDS.len() as u64;
    trial::each(options, options.n.unwrap_or(kinds * OF_EACH), kinds, one_daemon)
}

async fn one_daemon(seed: u64, faults: u64, counts: &mut Counts) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let bank = bank(2, 500).await;
    let (_tablets, tablets_port) = Daemon::tablets(&["r1", "r2"]);
    let mut links = Vec::new();
    for port in [bank[0].port(), bank[1].port(), tablets_port] {
        links.push(Arc::new(Proxy::to(port).await));
    }
    let mut sections = "[source]\nkind = \"postgres\"\n".to_owned();
    for (link, name) in links.iter().zip(["shard-a", "shard-b"]) {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", link.port);
        sections += &source_tablet(name, &url);
    }
    sections += "[replica]\nkind = \"grpc\"\n";
    for name in ["r1", "r2"] {
        let url = format!("http://127.0.0.1:{}", links[2].port);
        write!(sections, "[[replica.tablets]]\nname = {name:?}\nurl = {url:?}\n").unwrap();
    }
    let mut daemon = Daemon::new(&sections);
    let tellers = Tellers::start(&bank, 2);
    daemon.start();
    daemon.until_ready().await;
    let mut oracle = Oracle::default();
    for number in 0..faults {
        let kind = KINDS[(number % KINDS.len() as u64) as usize];
        // A connection that is dead for good shows only after a minute: the first seeds try it once on each kind of link.
        let link = if kind == "half_open" { seed as usize % links.len() } else { rng.random_range(0..links.len()) };
        eprintln!("{kind} on link {link}");
        let fault = match kind {
            "cut_at_byte" => Fault::CutAt(rng.random_range(1..20_000)),
            "reset" => Fault::Reset,
            "blackhole" => Fault::Blackhole,
            "bandwidth" => Fault::Bandwidth(rng.random_range(200..20_000)),
            "delay" => Fault::Delay(Duration::from_millis(rng.random_range(20..400))),
            "half_open" => Fault::HalfOpen,
            _ => Fault::None,
        };
        let slot = ["shard_a", "shard_b"][link % 2];
        let lasts = Duration::from_millis(rng.random_range(500..2_500));
        match kind {
            "daemon_stopped" => {
                daemon.signal("STOP");
                sleep(lasts).await;
                daemon.signal("CONT");
            }
            "walsender_stopped" => {
                bank[link % 2].signal_walsender(slot, "STOP").await;
                sleep(lasts).await;
                bank[link % 2].signal_walsender(slot, "CONT").await;
            }
            _ => {
                links[link].fail(fault);
                // Whoever reads may wait until it is healed.
                let link = Arc::clone(&links[link]);
                let healed = tokio::spawn(async move {
                    sleep(lasts).await;
                    link.fail(Fault::None);
                });
                oracle.look(&daemon, bank.len(), counts);
                healed.await.unwrap();
            }
        }
        // What the servers hold now arrives, although the load goes on.
        let fence = format!("after fault {number}");
        for (server, postgres) in bank.iter().enumerate() {
            postgres.execute(&format!("INSERT INTO legs VALUES ('{fence} on {server}', {server}, 1)")).await;
        }
        let arrived = |rows: &String| rows.matches(&fence).count() == bank.len();
        daemon.until(&fence, || daemon.scan("public.legs", "safe", "csv").ok().filter(arrived)).await;
        oracle.look(&daemon, bank.len(), counts);
        count(counts, kind);
    }
    *counts.entry("transfers").or_default() += tellers.stop().await;
    for table in ["public.accounts", "public.legs", "public.filler"] {
        until_equal(&daemon, &bank, table).await;
    }
    assert!(daemon.terminate().success(), "it does not drain");
}
