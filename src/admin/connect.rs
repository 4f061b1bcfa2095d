//! What `untorn check --connect` asks the servers that a configuration names: whether they answer, and whether they
//! have what the configuration says they have. All of them at once, every finding told.

use super::client;
use crate::config::{
    CdcTabletConfig, DaemonConfig, Faults, GrpcTabletConfig, LeaderConfig, ReplicaConfig, SourceConfig,
};
use crate::proto::cdc::ListTabletsRequest;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use futures::future::join_all;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long one server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A tablet that a gRPC server is said to hold.
struct Expected<'a> {
    /// The entry's key, `source.tablets[0]`.
    key: String,
    url: &'a str,
    tablet: &'a str,
}

/// Asks every server.
///
/// # Errors
/// What they lack, each by its key, with how to mend it.
pub async fn ask(config: &DaemonConfig) -> Result<(), Faults> {
    let mut expected = Vec::new();
    if let SourceConfig::Cdc(tablets) = &config.source {
        for (i, CdcTabletConfig { url, tablet, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("source.tablets[{i}]"), url, tablet });
        }
    }
    if let ReplicaConfig::Grpc(tablets) = &config.replica {
        for (i, GrpcTabletConfig { url, name, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("replica.tablets[{i}]"), url, tablet: name });
        }
    }
    let mut faults = Faults::default();
    if let LeaderConfig::At(url) = &config.leader
        && let Err(error) = reach(url).await
    {
        faults.push("leader.url", format!("{url} does not answer: {error}"), "start the leader, or mend the URL");
    }
    let answers = join_all(expected.iter().map(|tablet| list(tablet.url))).await;
    for (Expected { key, url, tablet }, answer) in expected.iter().zip(answers) {
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

/// The tablets that a server holds. Tablet servers serve CdcService too, so one question fits both.
async fn list(url: &str) -> Result<Vec<String>, String> {
    let mut client = CdcServiceClient::new(reach(url).await?);
    let answer = client.list_tablets(ListTabletsRequest {}).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().tablets)
}

async fn reach(url: &str) -> Result<Channel, String> {
    let text = |error: tonic::transport::Error| client::reason(&error);
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(text)?.connect_timeout(ANSWER).timeout(ANSWER);
    endpoint.connect().await.map_err(text)
}
