//! What a puller is given when it opens its stream.

use super::leader::StreamOpened;
use crate::coordinator::{Release, StreamOpening, TabletMap};
use crate::source::{OpenBranch, Resume};
use crate::wal::{Epoch, SourceTabletId};

/// What every puller is given beside its stream's opening.
pub(super) struct Given {
    pub(super) owner: Epoch,
    pub(super) log_id: String,
    pub(super) map: TabletMap,
    pub(super) streams: Vec<(String, SourceTabletId)>,
    pub(super) release: Release,
}

impl Given {
    pub(super) fn opened(self, opening: StreamOpening) -> StreamOpened {
        let open_branches = opening.open_branches.into_iter().map(|branch| OpenBranch {
            transaction: branch.transaction,
            label: branch.label,
            opened: branch.opened,
            records: branch.records,
            applying: branch.applying,
        });
        StreamOpened {
            stream: opening.stream,
            puller: opening.puller,
            owner: self.owner,
            log_id: self.log_id,
            map: self.map,
            streams: self.streams,
            release: self.release,
            slot_stands: opening.slot.is_some(),
            resume: Resume {
                stream: opening.stream,
                identity: opening.identity,
                after: opening.checkpoint,
                open_branches: open_branches.collect(),
            },
            stored: opening.stored,
        }
    }
}
