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
        let config = self.with_password().await.map_err(|failure| failure.at(&self.label()))?;
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
        let several = self.servers().count() > 1;
        let mut refused = Failure::lost("the URL names no host");
        for (host, port) in self.servers() {
            let connecting = async {
                let mut session = Replication::connect(host, port, self.tls(), &parameters, password).await?;
                // As `target_session_attrs=read-write` asks an SQL session.
                if several && session.command("SHOW transaction_read_only").await? != [Some("off".to_owned())] {
                    return Err(Failure::lost("no host takes writes: each is a standby or does not answer"));
                }
                Ok(session)
            };
            match tokio::time::timeout(limits::CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(failure)) => refused = failure,
                Err(_) => refused = Failure::lost("the server does not answer"),
            }
        }
        Err(refused.at(&self.label()))
    }
}
