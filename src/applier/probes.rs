//! Questions that the transaction leader has for the source's servers.

use super::inputs::{Input, Inputs};
use super::streams::StreamSide;
use crate::coordinator::{Fence, Output};
use crate::limits::PROBE_DEADLINE_MS;
use crate::source::SourceError;
use crate::wal::{LogPosition, OpId, SourceTabletId, SourceTransactionId};
use futures::future::{BoxFuture, try_join_all};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Runs probes beside everything else. The machine asks for one round and one fence at a time, so few run at once.
pub(super) struct Probes {
    sides: Vec<Arc<StreamSide>>,
    inputs: Inputs,
    running: JoinSet<()>,
}

impl Probes {
    pub(super) fn new(sides: Vec<Arc<StreamSide>>, inputs: Inputs) -> Self {
        Self { sides, inputs, running: JoinSet::new() }
    }

    /// Runs a probe; its result comes back as an input. A stream that joins anew has another number under its name.
    pub(super) fn run(&mut self, output: Output, name: impl Fn(SourceTabletId) -> String) {
        while self.running.try_join_next().is_some() {}
        let inputs = self.inputs.clone();
        let streams = |of: &[SourceTabletId]| -> Streams {
            let side = |stream: &SourceTabletId| {
                let side = self.sides.iter().find(|side| side.name == name(*stream))?;
                Some((*stream, Arc::clone(side)))
            };
            of.iter().filter_map(side).collect()
        };
        let probe: BoxFuture<'static, ()> = match output {
            Output::TakeRound { begun_after, of } => Box::pin(take_round(streams(&of), inputs, begun_after)),
            Output::TakeFence { of } => Box::pin(take_fence(streams(&of), inputs)),
            Output::CheckPrepared { stream, transactions } => {
                Box::pin(check_prepared(streams(&[stream]), inputs, stream, transactions))
            }
            Output::Nudge { stream } => Box::pin(nudge(streams(&[stream]), stream)),
            Output::Apply { .. } | Output::CheckRunning { .. } => return,
        };
        self.running.spawn(probe);
    }
}

/// The streams that are asked about, of those that this process can ask.
type Streams = BTreeMap<SourceTabletId, Arc<StreamSide>>;

/// One answer from a server, or why there is none.
async fn ask<T>(asked: impl Future<Output = Result<T, SourceError>>) -> Result<T, String> {
    match timeout(Duration::from_millis(PROBE_DEADLINE_MS), asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PROBE_DEADLINE_MS} ms")),
    }
}

/// Every server's flush position, read at once; sources with a common clock have none.
async fn flushed(streams: &Streams) -> Result<Vec<(SourceTabletId, OpId)>, String> {
    let asked = streams.iter().map(|(&stream, side)| async move {
        let position = ask(side.source.flushed()).await.map_err(|cause| format!("{}: {cause}", side.name))?;
        Ok::<_, String>(position.map(|position| (stream, position)))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

async fn take_round(streams: Streams, inputs: Inputs, begun_after: LogPosition) {
    let positions = flushed(&streams).await;
    if let Err(cause) = &positions {
        warn!(%cause, "a discovery round failed; it is tried again");
    }
    inputs.send(Input::Round { begun_after, positions: positions.ok() }).await;
}

async fn take_fence(streams: Streams, inputs: Inputs) {
    let fence = fence(&streams).await;
    if let Err(cause) = &fence {
        warn!(%cause, "the start fence could not be taken; it is tried again");
    }
    inputs.send(Input::Fence(fence.ok())).await;
}

/// What is prepared on *every* server is read between two readings of every server's position.
async fn fence(streams: &Streams) -> Result<Fence, String> {
    let before = flushed(streams).await?;
    let asked = streams.iter().map(|(&stream, side)| async move {
        let prepared = ask(side.source.prepared()).await.map_err(|cause| format!("{}: {cause}", side.name))?;
        Ok::<_, String>(prepared.into_iter().map(move |prepared| (stream, prepared.transaction)))
    });
    let prepared = try_join_all(asked).await?.into_iter().flatten().collect();
    Ok(Fence { before, prepared, positions: flushed(streams).await? })
}

async fn check_prepared(
    streams: Streams,
    inputs: Inputs,
    stream: SourceTabletId,
    transactions: Vec<SourceTransactionId>,
) {
    let Some(side) = streams.get(&stream) else { return };
    let asked = async {
        let prepared = ask(side.source.prepared()).await?;
        let gone = |t: &SourceTransactionId| !prepared.iter().any(|prepared| prepared.transaction == *t);
        let gone: Vec<_> = transactions.into_iter().filter(gone).collect();
        // Read after they were gone: what they left lies below.
        Ok::<_, String>((gone, ask(side.source.flushed()).await?))
    };
    let (transactions, position) = match asked.await {
        Ok((gone, position)) => (gone, position.unwrap_or(OpId::ZERO)),
        Err(cause) => {
            warn!(stream = %side.name, %cause, "the prepared transactions could not be read; they are asked for again");
            (Vec::new(), OpId::ZERO)
        }
    };
    // None gone is an answer too: the machine asks again.
    inputs.send(Input::FenceResolved { stream, transactions, position }).await;
}

/// Asks a stream's source which of these transactions it no longer knows as running (C8).
pub(super) fn check_running(side: &StreamSide, transactions: Vec<SourceTransactionId>) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        match ask(side.source.not_running(transactions)).await {
            Ok((gone, _)) if gone.is_empty() => {}
            Ok((gone, passed_at)) => side.not_running(passed_at, gone),
            Err(cause) => warn!(stream = %side.name, %cause, "the running transactions could not be read"),
        }
    })
}

async fn nudge(streams: Streams, stream: SourceTabletId) {
    let Some(side) = streams.get(&stream) else { return };
    if let Err(cause) = ask(side.source.nudge()).await {
        debug!(stream = %side.name, %cause, "the stream could not be nudged");
    }
}
