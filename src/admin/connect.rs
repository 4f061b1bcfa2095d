//! What `untorn check --connect` asks the servers that a configuration names: whether they answer, and whether they
//! have what the configuration says they have. All of them at once, every finding told.

use crate::access::{Address, ClientFiles, ClientKeys};
use crate::config::{
    CdcTabletConfig, DaemonConfig, Faults, GrpcTabletConfig, LeaderConfig, PostgresSourceConfig, PostgresTabletConfig,
    ReplicaConfig, SourceConfig,
};
use crate::limits;
use crate::proto::cdc::ListTabletsRequest;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use crate::proto::transaction::GetTransactionRecordRequest;
use crate::proto::transaction::transaction_service_client::TransactionServiceClient;
use crate::proto::transport::describe;
use crate::source::postgres::{Finding, GidPattern, Options, PostgresSource};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

/// How long one server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A tablet that a gRPC server is said to hold.
struct Expected<'a> {
    /// The entry's key, `source.tablets[0]`.
    key: String,
    url: &'a str,
    tls: Option<&'a ClientFiles>,
    tablet: &'a str,
}

/// Asks every server. What is worth a mention and no fault is added to `told`.
///
/// # Errors
/// What they lack, each by its key, with how to mend it.
pub async fn ask(config: &DaemonConfig, told: &mut Vec<String>) -> Result<(), Faults> {
    let mut expected = Vec::new();
    if let SourceConfig::Cdc(tablets) = &config.source {
        for (i, CdcTabletConfig { url, tls, tablet, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("source.tablets[{i}]"), url, tls: tls.as_ref(), tablet });
        }
    }
    if let ReplicaConfig::Grpc(tablets) = &config.replica {
        for (i, GrpcTabletConfig { url, tls, name, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("replica.tablets[{i}]"), url, tls: tls.as_ref(), tablet: name });
        }
    }
    let mut faults = Faults::default();
    if let SourceConfig::Postgres(source) = &config.source {
        let servers = join_all(source.tablets.iter().map(|tablet| postgres(source, tablet))).await;
        for (i, server) in servers.into_iter().enumerate() {
            tell(&format!("source.tablets[{i}]"), server, told, &mut faults);
        }
    }
    if let LeaderConfig::At { url, tls } = &config.leader
        && let Err(error) = leads(url, tls.as_ref()).await
    {
        faults.push("leader.url", format!("{url} does not answer: {error}"), "start the leader, or mend the URL");
    }
    let answers = join_all(expected.iter().map(|tablet| list(tablet.url, tablet.tls))).await;
    for (Expected { key, url, tablet, .. }, answer) in expected.iter().zip(answers) {
        match answer {
            Err(error) => {
                let what = format!("{url} does not answer: {error}");
                faults.push(&format!("{key}.url"), what, "start the server, or mend the URL");
            }
            Ok(held) if !held.iter().any(|name| name == tablet) => {
                let mend = format!("name one that it holds: {}", held.join(", "));
                faults.push(key, format!("{url} holds no tablet {tablet:?}"), mend);
            }
            Ok(_) => {}
        }
    }
    faults.or(())
}

async fn postgres(source: &PostgresSourceConfig, tablet: &PostgresTabletConfig) -> Result<Vec<Finding>, String> {
    let gids = GidPattern::parse(source.gid_pattern.as_deref().unwrap_or_default())?;
    let options = Options {
        name: tablet.name.clone(),
        url: tablet.url.expose().to_owned(),
        password_file: tablet.password_file.clone(),
        publication: tablet.publication.clone(),
        slot: tablet.slot.clone(),
        gids,
        slot_lock_timeout: limits::SLOT_LOCK_TIMEOUT,
    };
    PostgresSource::new(options)?.check().await.map_err(|error| error.to_string())
}

/// Sorts what a PostgreSQL server said into faults and mentions, with the SQL that mends them.
fn tell(key: &str, server: Result<Vec<Finding>, String>, told: &mut Vec<String>, faults: &mut Faults) {
    match server {
        Err(error) => faults.push(&format!("{key}.url"), error, "mend the server or the URL"),
        Ok(findings) => {
            for Finding { fault, text, sql } in findings {
                let mend =
                    if sql.is_empty() { "mend it at the server".to_owned() } else { format!("run there:\n{sql}") };
                if fault {
                    faults.push(key, text, mend);
                } else {
                    told.push(format!("{key}: {text}; {mend}"));
                }
            }
        }
    }
}

/// The tablets that a server holds. Tablet servers serve CdcService too, so one question fits both.
async fn list(url: &str, tls: Option<&ClientFiles>) -> Result<Vec<String>, String> {
    let mut client = CdcServiceClient::new(reach(url, tls).await?);
    let asked = timeout(ANSWER, client.list_tablets(ListTabletsRequest {})).await;
    let answer = asked.map_err(|late| late.to_string())?.map_err(|status| describe(&status))?;
    Ok(answer.into_inner().tablets)
}

/// Whether a transaction leader answers. It is asked for a transaction that nobody has, because a connection alone says
/// nothing: who is turned away hears of it with the first answer.
async fn leads(url: &str, tls: Option<&ClientFiles>) -> Result<(), String> {
    let mut client = TransactionServiceClient::new(reach(url, tls).await?);
    let asked = timeout(ANSWER, client.get_transaction_record(GetTransactionRecordRequest::default())).await;
    match asked.map_err(|late| late.to_string())? {
        Err(status) if status.code() != Code::NotFound => Err(describe(&status)),
        _ => Ok(()),
    }
}

async fn reach(url: &str, tls: Option<&ClientFiles>) -> Result<Channel, String> {
    let keys = tls.map(|files| ClientKeys::load(files.clone())).transpose().map_err(|error| error.to_string())?;
    Address::new(url, keys.map(Arc::new)).connect().await
}
