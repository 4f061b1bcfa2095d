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
    /// Runs one call over the storage, opening it by `open` when it is closed.
    pub(super) fn open_with<T>(
        &mut self,
        open: impl FnOnce() -> Result<S, LogError>,
        call: impl FnOnce(&mut S) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if matches!(self, Self::Closed) {
            match open() {
                Ok(storage) => *self = Self::Open(storage),
                Err(LogError::Poisoned(why)) => {
                    *self = Self::Poisoned(why.clone());
                    return Err(LogError::Poisoned(why));
                }
                Err(other) => return Err(other),
            }
        }
        let answer = self.call(call);
        // Nothing may be served from a damaged log, and whoever mends it needs the lock.
        if matches!(answer, Err(LogError::Damaged(_))) {
            *self = Self::Closed;
        }
        answer
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
        handle.open_with(|| Ok(()), |()| Ok(())).unwrap();
        let failed = handle.call::<()>(|()| Err(LogError::Poisoned("fdatasync".into())));
        assert!(matches!(failed, Err(LogError::Poisoned(_))));
        assert!(matches!(handle.call(|()| Ok(())), Err(LogError::Poisoned(why)) if why == "fdatasync"));
        assert!(matches!(handle.open_with(|| Ok(()), |()| Ok(())), Err(LogError::Poisoned(_))));
    }
}
