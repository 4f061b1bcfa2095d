//! A source server's sessions: for SQL, and for replication commands.

use super::wire::Replication;
use crate::limits;
use crate::postgres::connect::SESSION;
use crate::postgres::{Failure, Sql, Target};
use crate::source::SourceError;
use std::time::Duration;

impl Target {
    /// A session for SQL.
    ///
    /// # Errors
    /// Why there is none, as a stream reports it.
    pub async fn session(&self) -> Result<Sql, SourceError> {
        self.sql().await.map_err(|failure| failure.at(&self.label()))
    }

    /// A session for replication commands; a lock that cannot be had within `lock_timeout` fails its command.
    ///
    /// # Errors
    /// Why there is none, as a stream reports it.
    pub async fn replication(&self, lock_timeout: Duration) -> Result<Replication, SourceError> {
        let connecting = tokio::time::timeout(limits::CONNECT_TIMEOUT, self.begin_replication(lock_timeout));
        let connected = connecting.await.unwrap_or_else(|_| Err(Failure::lost("the server does not answer")));
        connected.map_err(|failure| failure.at(&self.label()))
    }

    async fn begin_replication(&self, lock_timeout: Duration) -> Result<Replication, Failure> {
        let config = self.with_password().await?;
        let lock_timeout = lock_timeout.as_millis().to_string();
        let mut parameters = vec![
            ("user", self.user()),
            ("database", self.database()),
            ("replication", "database"),
            ("application_name", "untorn"),
            ("lock_timeout", &lock_timeout),
        ];
        parameters.extend(SESSION);
        let password = config.get_password().unwrap_or_default();
        Replication::connect(&self.host(), self.port(), self.tls(), &parameters, password).await
    }
}
