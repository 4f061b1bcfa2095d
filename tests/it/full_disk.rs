//! The data folder's disk fills up: the daemon ends and names the folder, and once there is room it goes on.

use crate::support::daemon::{Daemon, source_of};
use crate::support::postgres::Postgres;
use crate::support::small_disk::SmallDisk;
use crate::support::tables::until_equal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_the_daemon_by_name_and_costs_nothing_once_there_is_room() {
    let servers = [Postgres::start().await];
    servers[0]
        .execute(
            "CREATE TABLE documents (id int PRIMARY KEY, body text NOT NULL);
             INSERT INTO documents VALUES (0, 'first');
             CREATE PUBLICATION untorn FOR ALL TABLES",
        )
        .await;
    let mut daemon = Daemon::new(&source_of(&servers));
    let disk = SmallDisk::mount(daemon.data(), "160m");
    daemon.start();
    daemon.until_ready().await;

    // 160 MB that no compression makes smaller.
    let body = "(SELECT string_agg(md5(random()::text || n || part), '') FROM generate_series(1, 256) part)";
    for first in (1..20_000).step_by(1_000) {
        let last = first + 999;
        servers[0]
            .execute(&format!("INSERT INTO documents SELECT n, {body} FROM generate_series({first}, {last}) n"))
            .await;
    }
    let ended = daemon.ended().await;
    let folder = disk.mounted.display().to_string();
    let log = daemon.log();
    let last = log.lines().last().unwrap_or_default();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(last.contains(&folder) && last.contains("No space left on device"), "{log}");

    // The same again while nobody has made room; then there is room.
    daemon.start();
    assert_eq!(daemon.ended().await.code(), Some(1), "{}", daemon.log());
    disk.grow("2g");
    daemon.start();
    daemon.until_ready().await;
    servers[0].execute("UPDATE documents SET body = 'last' WHERE id = 0").await;
    until_equal(&daemon, &servers, "public.documents").await;
    assert!(daemon.terminate().success());
}
