//! A poller's bookkeeping. Pure.
