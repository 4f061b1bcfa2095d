//! Messages of `transaction.proto` to and from the contract's types.

use super::super::leader::{Reported, StreamOpened, StreamState, Wanted};
use crate::coordinator::{FORMAT_VERSION, MappedTablet, PublishedColumn, PublishedTable, Release, Report, TabletMap};
use crate::proto::transaction as pb;
use crate::proto::wire::{Malformed, op_id, required};
use crate::source::{OpenBranch, Resume};
use crate::wal::codec;
use crate::wal::{Epoch, OpId, ReplicaTabletId, SourceTabletId};

/// The report as the log keeps it: entries hold reports, so their format's version is the entries'.
pub fn report_bytes(report: &Report) -> Result<Vec<u8>, codec::CodecError> {
    codec::encode(FORMAT_VERSION, report)
}

/// Reads a report back.
pub fn report_from(bytes: &[u8]) -> Result<Report, Malformed> {
    codec::decode(FORMAT_VERSION, bytes).map_err(|fault| Malformed::new("report", fault.to_string()))
}

impl From<PublishedTable> for pb::PublishedTable {
    fn from(table: PublishedTable) -> Self {
        let column = |column: PublishedColumn| {
            let PublishedColumn { number, name, type_id, filled } = column;
            pb::PublishedColumn { number: number.into(), name, type_id, filled }
        };
        let PublishedTable { name, relation, columns } = table;
        Self { name, relation, columns: columns.into_iter().map(column).collect() }
    }
}

impl TryFrom<pb::PublishedTable> for PublishedTable {
    type Error = Malformed;

    fn try_from(table: pb::PublishedTable) -> Result<Self, Malformed> {
        let column = |column: pb::PublishedColumn| {
            let pb::PublishedColumn { number, name, type_id, filled } = column;
            let number = i16::try_from(number).map_err(|_| Malformed::new("columns.number", "is out of range"))?;
            Ok(PublishedColumn { number, name, type_id, filled })
        };
        let pb::PublishedTable { name, relation, columns } = table;
        Ok(Self { name, relation, columns: columns.into_iter().map(column).collect::<Result<_, Malformed>>()? })
    }
}

impl From<StreamState> for pb::StreamState {
    fn from(state: StreamState) -> Self {
        let state = match state {
            StreamState::NotPolled => pb::stream_state::State::NotPolled(pb::NotPolled {}),
            StreamState::Copying { rows, total } => pb::stream_state::State::Copying(pb::Copying { rows, total }),
            StreamState::Running => pb::stream_state::State::Running(pb::Running {}),
            StreamState::Waiting { cause } => pb::stream_state::State::Waiting(cause),
            StreamState::BackPressure { tablet } => pb::stream_state::State::BackPressure(tablet),
            StreamState::Stopped { cause } => pb::stream_state::State::Stopped(cause),
        };
        Self { state: Some(state) }
    }
}

impl TryFrom<pb::StreamState> for StreamState {
    type Error = Malformed;

    fn try_from(state: pb::StreamState) -> Result<Self, Malformed> {
        Ok(match required("stream_state.state", state.state)? {
            pb::stream_state::State::NotPolled(pb::NotPolled {}) => Self::NotPolled,
            pb::stream_state::State::Copying(pb::Copying { rows, total }) => Self::Copying { rows, total },
            pb::stream_state::State::Running(pb::Running {}) => Self::Running,
            pb::stream_state::State::Waiting(cause) => Self::Waiting { cause },
            pb::stream_state::State::BackPressure(tablet) => Self::BackPressure { tablet },
            pb::stream_state::State::Stopped(cause) => Self::Stopped { cause },
        })
    }
}

impl From<Wanted> for pb::StreamStateResponse {
    fn from(wanted: Wanted) -> Self {
        let check_running = wanted.check_running.iter().map(Into::into).collect();
        Self { pause_for: wanted.pause_for, check_running }
    }
}

impl From<pb::StreamStateResponse> for Wanted {
    fn from(response: pb::StreamStateResponse) -> Self {
        let check_running = response.check_running.into_iter().map(Into::into).collect();
        Self { pause_for: response.pause_for, check_running }
    }
}

impl From<Reported> for pb::ReportResponse {
    fn from(reported: Reported) -> Self {
        Self { checkpoint: Some(reported.checkpoint.into()), acknowledge: Some(reported.acknowledge.into()) }
    }
}

impl TryFrom<pb::ReportResponse> for Reported {
    type Error = Malformed;

    fn try_from(response: pb::ReportResponse) -> Result<Self, Malformed> {
        Ok(Self {
            checkpoint: op_id("checkpoint", response.checkpoint)?,
            acknowledge: op_id("acknowledge", response.acknowledge)?,
        })
    }
}

fn release_to(release: Release) -> pb::Release {
    match release {
        Release::CommonClock => pb::Release::CommonClock,
        Release::Ordered => pb::Release::Ordered,
        Release::Atomic => pb::Release::Atomic,
    }
}

fn release_from(release: i32) -> Result<Release, Malformed> {
    match pb::Release::try_from(release) {
        Ok(pb::Release::CommonClock) => Ok(Release::CommonClock),
        Ok(pb::Release::Ordered) => Ok(Release::Ordered),
        Ok(pb::Release::Atomic) => Ok(Release::Atomic),
        Ok(pb::Release::Unspecified) | Err(_) => Err(Malformed::new("release", "is none that is known")),
    }
}

impl From<TabletMap> for pb::TabletMap {
    fn from(map: TabletMap) -> Self {
        let tablet = |tablet: MappedTablet| {
            let MappedTablet { id, name, from_key } = tablet;
            pb::MappedTablet { id: id.0, name, from_key: from_key.map(Into::into) }
        };
        Self { version: map.version, tablets: map.tablets.into_iter().map(tablet).collect() }
    }
}

impl From<pb::TabletMap> for TabletMap {
    fn from(map: pb::TabletMap) -> Self {
        let tablet = |tablet: pb::MappedTablet| {
            let pb::MappedTablet { id, name, from_key } = tablet;
            MappedTablet { id: ReplicaTabletId(id), name, from_key: from_key.map(Into::into) }
        };
        Self { version: map.version, tablets: map.tablets.into_iter().map(tablet).collect() }
    }
}

impl From<OpenBranch> for pb::OpenBranch {
    fn from(branch: OpenBranch) -> Self {
        let OpenBranch { transaction, label, opened, records, applying } = branch;
        Self { transaction: Some((&transaction).into()), label, opened: Some(opened.into()), records, applying }
    }
}

impl TryFrom<pb::OpenBranch> for OpenBranch {
    type Error = Malformed;

    fn try_from(branch: pb::OpenBranch) -> Result<Self, Malformed> {
        Ok(Self {
            transaction: required("open_branches.transaction", branch.transaction)?.into(),
            label: branch.label,
            opened: op_id("open_branches.opened", branch.opened)?,
            records: branch.records,
            applying: branch.applying,
        })
    }
}

impl From<StreamOpened> for pb::OpenStreamResponse {
    fn from(opened: StreamOpened) -> Self {
        let resume = opened.resume;
        let resume = pb::Resume {
            identity: resume.identity,
            after: Some(resume.after.into()),
            open_branches: resume.open_branches.into_iter().map(Into::into).collect(),
        };
        let stored = |(tablet, stored): (ReplicaTabletId, OpId)| pb::StoredMark {
            tablet: tablet.0,
            stored: Some(stored.into()),
        };
        Self {
            stream: opened.stream.0,
            puller: opened.puller.0,
            owner: opened.owner.0,
            log_id: opened.log_id,
            map: Some(opened.map.into()),
            streams: opened
                .streams
                .into_iter()
                .map(|(name, stream)| pb::NamedStream { name, stream: stream.0 })
                .collect(),
            release: release_to(opened.release).into(),
            slot_stands: opened.slot_stands,
            resume: Some(resume),
            stored: opened.stored.into_iter().map(stored).collect(),
        }
    }
}

impl TryFrom<pb::OpenStreamResponse> for StreamOpened {
    type Error = Malformed;

    fn try_from(response: pb::OpenStreamResponse) -> Result<Self, Malformed> {
        let stream = SourceTabletId(response.stream);
        let resume = required("resume", response.resume)?;
        let resume = Resume {
            stream,
            identity: resume.identity,
            after: op_id("resume.after", resume.after)?,
            open_branches: resume.open_branches.into_iter().map(OpenBranch::try_from).collect::<Result<_, _>>()?,
        };
        let stored = |mark: pb::StoredMark| -> Result<(ReplicaTabletId, OpId), Malformed> {
            Ok((ReplicaTabletId(mark.tablet), op_id("stored.stored", mark.stored)?))
        };
        Ok(Self {
            stream,
            puller: Epoch(response.puller),
            owner: Epoch(response.owner),
            log_id: response.log_id,
            map: required("map", response.map)?.into(),
            streams: response.streams.into_iter().map(|named| (named.name, SourceTabletId(named.stream))).collect(),
            release: release_from(response.release)?,
            slot_stands: response.slot_stands,
            resume,
            stored: response.stored.into_iter().map(stored).collect::<Result<_, _>>()?,
        })
    }
}
