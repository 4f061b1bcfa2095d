//! A session that speaks the replication protocol. tokio-postgres does not, so this is its smallest complement: log in,
//! run a command, then frames both ways.

use crate::limits;
use crate::postgres::Failure;
use crate::postgres::tls::Tls;
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::fallible_iterator::FallibleIterator;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Bytes read at once: many frames a system call.
const READ_BYTES: usize = 64 << 10;

/// PostgreSQL's own bound of a message is 1 GiB; a length above it is damage, not a reason to ask for memory.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// A session.
pub struct Replication {
    socket: Box<dyn Socket>,
    input: BytesMut,
}

impl Replication {
    /// Connects and logs in.
    ///
    /// # Errors
    /// What the server or the way to it said.
    pub async fn connect(
        host: &Host,
        port: u16,
        tls: &Tls,
        parameters: &[(&str, &str)],
        password: &[u8],
    ) -> Result<Self, Failure> {
        let socket: Box<dyn Socket> = match host {
            Host::Unix(folder) => {
                Box::new(UnixStream::connect(Path::new(folder).join(format!(".s.PGSQL.{port}"))).await?)
            }
            Host::Tcp(name) => encrypt(connect_tcp(name, port).await?, name, tls).await?,
        };
        let mut session = Self { socket, input: BytesMut::with_capacity(READ_BYTES) };
        let mut out = BytesMut::new();
        frontend::startup_message(parameters.iter().copied(), &mut out)?;
        session.socket.write_all(&out).await?;
        let user = parameters.iter().find(|(name, _)| *name == "user").map_or("", |(_, user)| user);
        session.log_in(user, password).await?;
        Ok(session)
    }

    /// Runs a replication command; the first row that it answers.
    ///
    /// # Errors
    /// What the server or the way to it said.
    pub async fn command(&mut self, sql: &str) -> Result<Vec<Option<String>>, Failure> {
        self.send_query(sql).await?;
        let (mut first, mut failure) = (None, None);
        loop {
            match self.message().await? {
                Message::DataRow(row) if first.is_none() => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        range.map(|range| String::from_utf8_lossy(&row.buffer()[range]).into_owned())
                    };
                    first = Some(row.ranges().map(|range| Ok(text(range))).collect()?);
                }
                Message::ErrorResponse(body) => failure = Some(server_failure(body.fields())),
                Message::ReadyForQuery(_) => return failure.map_or_else(|| Ok(first.unwrap_or_default()), Err),
                _ => {}
            }
        }
    }

    /// Begins to stream: `START_REPLICATION`. From here on only [`Self::read`] and [`Self::write`] are of use.
    ///
    /// # Errors
    /// What the server or the way to it said.
    pub async fn start(&mut self, sql: &str) -> Result<(), Failure> {
        self.send_query(sql).await?;
        loop {
            while self.input.is_empty() {
                self.fill().await?;
            }
            if self.input[0] == b'W' {
                while self.frame()?.is_none() {
                    self.fill().await?;
                }
                return Ok(());
            }
            if let Message::ErrorResponse(body) = self.message().await? {
                return Err(server_failure(body.fields()));
            }
        }
    }

    /// Waits until at least one frame came, and takes all that have. Loses nothing when it is cancelled.
    ///
    /// # Errors
    /// The end of the stream, by name.
    pub async fn read(&mut self) -> Result<Vec<Bytes>, Failure> {
        let mut frames = Vec::new();
        loop {
            while let Some((tag, body)) = self.frame()? {
                match tag {
                    b'd' => frames.push(body),
                    b'E' => return Err(failure_of(body)),
                    b'c' | b'C' => return Err(Failure::lost("the server ended the stream")),
                    _ => {}
                }
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
            self.fill().await?;
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// A connection that is gone.
    pub async fn write(&mut self, frame: &[u8]) -> Result<(), Failure> {
        let mut out = BytesMut::with_capacity(frame.len() + 5);
        frontend::CopyData::new(frame)?.write(&mut out);
        self.socket.write_all(&out).await?;
        Ok(self.socket.flush().await?)
    }

    async fn log_in(&mut self, user: &str, password: &[u8]) -> Result<(), Failure> {
        let mut scram = None;
        loop {
            let mut out = BytesMut::new();
            match self.message().await? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => frontend::password_message(password, &mut out)?,
                Message::AuthenticationMd5Password(body) => {
                    let hash = postgres_protocol::authentication::md5_hash(user.as_bytes(), password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                }
                Message::AuthenticationSasl(body) => {
                    if !body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256))? {
                        return Err(Failure::lost("the server asks for a way to log in other than SCRAM-SHA-256"));
                    }
                    if password.is_empty() {
                        return Err(refused("the server asks for a password, and none is given"));
                    }
                    let started = ScramSha256::new(password, ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, started.message(), &mut out)?;
                    scram = Some(started);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(|| Failure::lost("SASL goes on before it began"))?;
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut out)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let scram = scram.as_mut().ok_or_else(|| Failure::lost("SASL ends before it began"))?;
                    scram.finish(body.data()).map_err(|e| refused(&e.to_string()))?;
                }
                Message::ErrorResponse(body) => return Err(server_failure(body.fields())),
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                _ => return Err(Failure::lost("the server asks for a way to log in that is not known")),
            }
            if !out.is_empty() {
                self.socket.write_all(&out).await?;
                self.socket.flush().await?;
            }
        }
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.socket.write_all(&out).await?;
        Ok(self.socket.flush().await?)
    }

    async fn message(&mut self) -> Result<Message, Failure> {
        loop {
            if let Some(message) = Message::parse(&mut self.input)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Takes one whole frame off the input: its tag and its body.
    fn frame(&mut self) -> Result<Option<(u8, Bytes)>, Failure> {
        let Some(header) = self.input.get(..5) else { return Ok(None) };
        let (tag, length) = (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
        if !(4..=FRAME_BYTES_MAX).contains(&length) {
            return Err(Failure::lost(format!("a frame that says it has {length} bytes")));
        }
        if self.input.len() <= length {
            self.input.reserve(length + 1 - self.input.len());
            return Ok(None);
        }
        let mut frame = self.input.split_to(length + 1);
        frame.advance(5);
        Ok(Some((tag, frame.freeze())))
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.input.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err(Failure::lost("the server closed the connection")),
            _ => Ok(()),
        }
    }
}

async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    let options = socket2::SockRef::from(&socket);
    options.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(limits::CONNECTION_DEAD_AFTER / 2))?;
    // A peer that went away without a word is noticed by the status updates that it does not acknowledge.
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(limits::CONNECTION_DEAD_AFTER))?;
    Ok(socket)
}

/// Asks the server for TLS, as the mode says.
async fn encrypt(mut socket: TcpStream, host: &str, tls: &Tls) -> Result<Box<dyn Socket>, Failure> {
    let (connector, required) = match tls {
        Tls::Disable => return Ok(Box::new(socket)),
        Tls::Prefer(connector) => (connector, false),
        Tls::Require(connector) => (connector, true),
    };
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    socket.write_all(&out).await?;
    match socket.read_u8().await? {
        b'S' => {
            let mut connector = connector.clone();
            let made = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, host).map_err(Failure::lost)?;
            Ok(Box::new(made.connect(socket).await.map_err(|e| Failure::lost(format!("TLS: {e}")))?))
        }
        _ if required => Err(Failure::lost("the server does not offer TLS, which sslmode asks for")),
        _ => Ok(Box::new(socket)),
    }
}

fn refused(message: &str) -> Failure {
    Failure { code: "28P01".into(), message: message.to_owned() }
}

fn failure_of(body: Bytes) -> Failure {
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    framed.extend_from_slice(b"E");
    framed.extend_from_slice(&(u32::try_from(body.len()).unwrap_or(u32::MAX - 4) + 4).to_be_bytes());
    framed.extend_from_slice(&body);
    match Message::parse(&mut framed) {
        Ok(Some(Message::ErrorResponse(body))) => server_failure(body.fields()),
        _ => Failure::lost("the server sent an error that cannot be read"),
    }
}

/// An ErrorResponse: SQLSTATE, message, detail and hint.
fn server_failure(mut fields: ErrorFields<'_>) -> Failure {
    let (mut code, mut message, mut extra) = (String::new(), String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes());
        match field.type_() {
            b'C' => code = value.into_owned(),
            b'M' => message = value.into_owned(),
            b'D' | b'H' => extra += &format!(" ({value})"),
            _ => {}
        }
    }
    Failure { code, message: message + &extra }
}
