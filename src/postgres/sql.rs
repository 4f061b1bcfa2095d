//! A session for SQL that drives its own connection: whoever waits for an answer moves the bytes, so that no task needs
//! to be started for it.

use super::error::Failure;
use futures::FutureExt;
use std::future::Future;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{
    Client, Config, CopyInSink, CopyOutStream, Row, SimpleQueryMessage, Socket, Statement, ToStatement,
};

/// A session.
pub struct Sql {
    client: Client,
    connection: Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>,
}

impl Sql {
    /// Connects.
    ///
    /// # Errors
    /// What the server or the way to it said.
    pub async fn connect<T>(config: &Config, tls: T) -> Result<Self, Failure>
    where
        T: MakeTlsConnect<Socket> + Send + 'static,
        T::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let (client, connection) = config.connect(tls).await?;
        Ok(Self { client, connection: Box::pin(connection) })
    }

    /// The session, unless the server has ended it since it was used last, as far as that is known without asking.
    #[must_use]
    pub fn alive(mut self) -> Option<Self> {
        self.connection.as_mut().now_or_never().is_none().then_some(self)
    }

    /// Rows of a query.
    ///
    /// # Errors
    /// What the server or the way to it said; after a lost connection the session is of no further use.
    pub async fn query<S>(&mut self, sql: &S, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure>
    where
        S: ?Sized + ToStatement + Sync,
    {
        drive(&mut self.connection, self.client.query(sql, parameters)).await
    }

    /// Prepares a statement, to be run often.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, Failure> {
        drive(&mut self.connection, self.client.prepare(sql)).await
    }

    /// Runs a prepared statement, and answers how many rows it changed.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn execute(&mut self, sql: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Failure> {
        drive(&mut self.connection, self.client.execute(sql, parameters)).await
    }

    /// Begins a `COPY … FROM STDIN`.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn copy_in(&mut self, sql: &str) -> Result<Pin<Box<CopyInSink<bytes::Bytes>>>, Failure> {
        Ok(Box::pin(drive(&mut self.connection, self.client.copy_in(sql)).await?))
    }

    /// Sends a piece of a copy.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn send_copied(
        &mut self,
        copy: &mut Pin<Box<CopyInSink<bytes::Bytes>>>,
        piece: bytes::Bytes,
    ) -> Result<(), Failure> {
        use futures::SinkExt;
        drive(&mut self.connection, copy.send(piece)).await
    }

    /// Ends a copy, and answers how many rows it brought.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn finish_copy(&mut self, copy: &mut Pin<Box<CopyInSink<bytes::Bytes>>>) -> Result<u64, Failure> {
        drive(&mut self.connection, copy.as_mut().finish()).await
    }

    /// Runs statements without parameters and answers the first column of the last row, as text.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn text(&mut self, sql: &str) -> Result<Option<String>, Failure> {
        let answers = drive(&mut self.connection, self.client.simple_query(sql)).await?;
        Ok(answers.iter().rev().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
            _ => None,
        }))
    }

    /// Runs a statement without parameters and answers its rows as PostgreSQL's text forms.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let answers = drive(&mut self.connection, self.client.simple_query(sql)).await?;
        let mut rows = Vec::new();
        for answer in answers {
            if let SimpleQueryMessage::Row(row) = answer {
                let cell = |column| row.try_get(column).map(|text| text.map(str::to_owned));
                rows.push((0..row.len()).map(cell).collect::<Result<_, _>>()?);
            }
        }
        Ok(rows)
    }

    /// Begins a `COPY … TO STDOUT`; its rows come by [`Self::next_copied`].
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn copy_out(&mut self, sql: &str) -> Result<Pin<Box<CopyOutStream>>, Failure> {
        Ok(Box::pin(drive(&mut self.connection, self.client.copy_out(sql)).await?))
    }

    /// The next piece of a copy.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn next_copied(&mut self, copy: &mut Pin<Box<CopyOutStream>>) -> Result<Option<bytes::Bytes>, Failure> {
        use futures::TryStreamExt;
        drive(&mut self.connection, copy.try_next()).await
    }
}

/// Waits for an answer while moving the connection's bytes.
async fn drive<T>(
    connection: &mut Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        answer = answer => answer.map_err(Failure::from),
        ended = connection => Err(ended.err().map_or_else(|| Failure::lost("the server closed the connection"), Failure::from)),
    }
}
