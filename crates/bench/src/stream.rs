//! One gRPC stream over HTTP/2, without the layers that a generator does not need.
//!
//! Invariants: a connection is shared by the agents of one trunk and opened again by the first that misses it;
//! what is sent is not waited for (a session bounds what is under way by what was answered).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use mcl_proto::v1::{SessionRequest, SessionResponse};
use mcl_transport::Identity;
use prost::Message;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// For the connection, and again for the first answer: as real workers have it.
const ATTEMPT: Duration = Duration::from_secs(5);
/// gRPC's frame: a flag, and the length of what follows.
const HEADER: usize = 5;
const METHOD: &str = "/mcl.v1.CoordinatorService/Session";

/// How a stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// It never began.
    #[error("{0}")]
    Connect(String),
    /// It broke, or the coordinator ended it.
    #[error("{0}")]
    Broken(String),
    /// What came is no message.
    #[error("{0}")]
    Protocol(String),
}

/// A TCP connection for one agent or several.
#[derive(Debug)]
pub(crate) struct Trunk {
    address: SocketAddr,
    authority: String,
    /// As whom; none: without TLS.
    identity: Option<Identity>,
    open: Mutex<Option<SendRequest<Bytes>>>,
}

impl Trunk {
    pub(crate) fn new(address: SocketAddr, authority: String, identity: Option<Identity>) -> Self {
        Self { address, authority, identity, open: Mutex::new(None) }
    }

    /// A stream whose first message is sent.
    pub(crate) async fn open(&self, first: SessionRequest) -> Result<(Outgoing, Incoming), StreamError> {
        let late = |what| StreamError::Connect(format!("no {what} within {} s", ATTEMPT.as_secs()));
        let sender = tokio::time::timeout(ATTEMPT, self.sender()).await.map_err(|_| late("connection"))??;
        tokio::time::timeout(ATTEMPT, self.request(sender, first)).await.map_err(|_| late("answer"))?
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, StreamError> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.take()
            && let Ok(sender) = sender.ready().await
        {
            return Ok(open.insert(sender).clone());
        }
        let connect = |e: &dyn std::fmt::Display| StreamError::Connect(e.to_string());
        let tcp = TcpStream::connect(self.address).await.map_err(|e| connect(&e))?;
        tcp.set_nodelay(true).map_err(|e| connect(&e))?;
        // The connection ends with its streams and this trunk; what broke it is seen by the streams.
        let sender = if let Some(identity) = &self.identity {
            let tls = identity.secure(tcp, self.host()).await.map_err(|e| connect(&e))?;
            let (sender, connection) = client::handshake(tls).await.map_err(|e| connect(&e))?;
            tokio::spawn(connection);
            sender
        } else {
            let (sender, connection) = client::handshake(tcp).await.map_err(|e| connect(&e))?;
            tokio::spawn(connection);
            sender
        };
        let sender = sender.ready().await.map_err(|e| connect(&e))?;
        Ok(open.insert(sender).clone())
    }

    /// What the coordinator's certificate has to be for.
    fn host(&self) -> &str {
        self.authority.rsplit_once(':').map_or(&self.authority, |(host, _)| host)
    }

    async fn request(
        &self,
        mut sender: SendRequest<Bytes>,
        first: SessionRequest,
    ) -> Result<(Outgoing, Incoming), StreamError> {
        let connect = |e: &dyn std::fmt::Display| StreamError::Connect(e.to_string());
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        let request = Request::post(format!("{scheme}://{}{METHOD}", self.authority))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())
            .map_err(|e| connect(&e))?;
        let (response, send) = sender.send_request(request, false).map_err(|e| connect(&e))?;
        let mut outgoing = Outgoing { send };
        outgoing.send(&first)?;
        let response = response.await.map_err(|e| connect(&e))?;
        if let Some(reason) = refusal(response.headers()) {
            return Err(StreamError::Connect(reason));
        }
        if !response.status().is_success() {
            return Err(StreamError::Connect(format!("HTTP status {}", response.status())));
        }
        Ok((outgoing, Incoming { body: response.into_body(), buffer: BytesMut::new() }))
    }
}

/// To the coordinator.
#[derive(Debug)]
pub(crate) struct Outgoing {
    send: SendStream<Bytes>,
}

impl Outgoing {
    pub(crate) fn send(&mut self, message: &SessionRequest) -> Result<(), StreamError> {
        self.send.send_data(frame(message)?, false).map_err(|e| StreamError::Broken(e.to_string()))
    }

    /// Ends the stream in order.
    pub(crate) fn end(mut self) {
        // A stream that is broken already has ended.
        let _ = self.send.send_data(Bytes::new(), true);
    }
}

/// From the coordinator.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<SessionResponse, StreamError> {
        let broken = |e: h2::Error| StreamError::Broken(e.to_string());
        loop {
            if let Some(message) = unframe(&mut self.buffer)? {
                return Ok(message);
            }
            let Some(data) = self.body.data().await else { break };
            let data = data.map_err(broken)?;
            self.body.flow_control().release_capacity(data.len()).map_err(broken)?;
            self.buffer.extend_from_slice(&data);
        }
        let trailers = self.body.trailers().await.map_err(broken)?;
        let reason = trailers.as_ref().and_then(refusal);
        Err(StreamError::Broken(reason.unwrap_or_else(|| "the coordinator ended the stream".to_owned())))
    }
}

/// The status in headers or trailers, where it is not well.
fn refusal(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let status = text("grpc-status").filter(|status| *status != "0")?;
    Some(format!("gRPC status {status}: {}", text("grpc-message").unwrap_or("no message")))
}

fn frame(message: &SessionRequest) -> Result<Bytes, StreamError> {
    let len = message.encoded_len();
    let told = u32::try_from(len).map_err(|e| StreamError::Protocol(e.to_string()))?;
    let mut buffer = BytesMut::with_capacity(HEADER + len);
    buffer.put_u8(0);
    buffer.put_u32(told);
    message.encode(&mut buffer).map_err(|e| StreamError::Protocol(e.to_string()))?;
    Ok(buffer.freeze())
}

/// The first message of a buffer, once all of it is there.
fn unframe(buffer: &mut BytesMut) -> Result<Option<SessionResponse>, StreamError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let [compressed, a, b, c, d] = *header;
    if compressed != 0 {
        return Err(StreamError::Protocol("a compressed message, which was not asked for".to_owned()));
    }
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len > mcl_proto::MAX_MESSAGE_BYTES {
        return Err(StreamError::Protocol(format!("a message of {len} bytes")));
    }
    if buffer.len() < HEADER + len {
        return Ok(None);
    }
    buffer.advance(HEADER);
    let message = buffer.split_to(len);
    SessionResponse::decode(message.freeze()).map(Some).map_err(|e| StreamError::Protocol(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_proto::v1::{Acknowledged, Heartbeat, session_request, session_response};

    fn framed(sequence: u64) -> Vec<u8> {
        let message = session_response::Message::Acknowledged(Acknowledged { sequence });
        let body = SessionResponse { message: Some(message) }.encode_to_vec();
        [&[0, 0, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat()
    }

    #[test]
    fn messages_come_out_whole_however_they_arrive() {
        let bytes = [framed(1), framed(300)].concat();
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(message) = unframe(&mut buffer).unwrap() {
                    found.push(message.message.unwrap());
                }
            }
            let expected =
                [1, 300].map(|sequence| session_response::Message::Acknowledged(Acknowledged { sequence }));
            assert_eq!((found.as_slice(), buffer.len()), (&expected[..], 0), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut compressed = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert!(unframe(&mut compressed).is_err());
        let mut huge = BytesMut::from(&[0, 255, 255, 255, 255][..]);
        assert!(unframe(&mut huge).is_err());
        let mut garbage = BytesMut::from(&[0, 0, 0, 0, 1, 7][..]);
        assert!(unframe(&mut garbage).is_err());
    }

    #[test]
    fn frames_say_their_length() {
        let beat = Heartbeat { sequence: 7, ..Heartbeat::default() };
        let message = SessionRequest { message: Some(session_request::Message::Heartbeat(beat)) };
        let bytes = frame(&message).unwrap();
        assert_eq!(bytes[..HEADER], [0, 0, 0, 0, u8::try_from(bytes.len() - HEADER).unwrap()]);
        assert_eq!(SessionRequest::decode(&bytes[HEADER..]).unwrap(), message);
    }

    #[test]
    fn a_status_that_is_well_is_no_refusal() {
        let mut headers = HeaderMap::new();
        assert_eq!(refusal(&headers), None);
        headers.insert("grpc-status", "0".parse().unwrap());
        assert_eq!(refusal(&headers), None);
        headers.insert("grpc-status", "14".parse().unwrap());
        assert_eq!(refusal(&headers).unwrap(), "gRPC status 14: no message");
    }
}
