//! Visibility and resolution rules. Pure.
