//! An engine's storage, and the rule that its first failure is final (C11).

use super::LogError;

/// The storage of one engine handle.
pub(super) enum Handle<S> {
    /// Set by a new handle; waited for by nobody: every call but `open` is refused.
    Closed,
    /// Set by `open`.
    Open(S),
    /// Set by the first call that failed with [`LogError::Poisoned`]; stays so for ever.
    Poisoned(String),
}

impl<S> Handle<S> {
    /// Runs one call over the storage. If it is closed, it is opened first and recovered: read, checked, made durable.
    pub(super) fn open_with<T>(
        &mut self,
        open: impl FnOnce() -> Result<S, LogError>,
        recover: impl FnOnce(&mut S) -> Result<(), LogError>,
        call: impl FnOnce(&mut S) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if matches!(self, Self::Closed) {
            *self = Self::Open(open()?);
            if let Err(error) = self.call(recover) {
                // Nothing may be served from what cannot be recovered, and whoever mends it needs the lock.
                if !matches!(error, LogError::Poisoned(_)) {
                    *self = Self::Closed;
                }
                return Err(error);
            }
        }
        self.call(call)
    }

    /// Runs one call over open storage.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut S) -> Result<T, LogError>) -> Result<T, LogError> {
        let answer = match self {
            Self::Closed => return Err(LogError::Unavailable("it is not open".into())),
            Self::Poisoned(why) => return Err(LogError::Poisoned(why.clone())),
            Self::Open(storage) => call(storage),
        };
        if let Err(LogError::Poisoned(why)) = &answer
            && let Self::Open(storage) = std::mem::replace(self, Self::Poisoned(why.clone()))
        {
            // Both libraries write and sync once more when they are dropped. That would retry the failed barrier, so
            // the storage is left as it is until the process ends.
            std::mem::forget(storage);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_final() {
        let mut handle = Handle::Closed;
        assert!(matches!(handle.call(|()| Ok(())), Err(LogError::Unavailable(_))));
        let damaged = handle.open_with(|| Ok(()), |()| Err(LogError::Damaged("a hole".into())), |()| Ok(()));
        assert!(matches!(damaged, Err(LogError::Damaged(_))));
        handle.open_with(|| Ok(()), |()| Ok(()), |()| Ok(())).unwrap();
        let failed = handle.call::<()>(|()| Err(LogError::Poisoned("fdatasync".into())));
        assert!(matches!(failed, Err(LogError::Poisoned(_))));
        assert!(matches!(handle.call(|()| Ok(())), Err(LogError::Poisoned(why)) if why == "fdatasync"));
        assert!(matches!(handle.open_with(|| Ok(()), |()| Ok(()), |()| Ok(())), Err(LogError::Poisoned(_))));
    }
}
