//! One stream to the coordinator, from the first attempt to its end.
//!
//! Invariants: the greeting is the first message; the end of a stream is told once, with a reason, and
//! nothing comes after it. Left out: trying again, which is a decision.

use crate::WorkerError;
use crate::event::{Attempt, Event};
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_proto::v1::{Hello, SessionRequest, session_request};
use mcl_transport::{Dial, Identity};
use std::error::Error;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Messages that may wait for the network. A stream that lets more pile up is given up; everything that
/// matters is sent again on the next.
pub(crate) const OUTGOING: usize = 1024;
/// For the connection, and again for the first answer.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A peer that vanished without a word is noticed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Where the coordinator is.
pub(crate) fn dial(url: &str, identity: Option<&Identity>) -> Result<Dial, WorkerError> {
    let dial = Dial::new(url, identity)
        .map_err(|e| WorkerError::Address { url: url.to_owned(), reason: e.to_string() })?;
    Ok(dial.with(|endpoint| {
        endpoint
            .connect_timeout(ATTEMPT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
    }))
}

/// Opens a stream after a pause and passes on what comes, until it ends.
pub(crate) async fn run(
    dial: Dial,
    attempt: Attempt,
    hello: Hello,
    after: Duration,
    queue: mpsc::Receiver<SessionRequest>,
    events: mpsc::Sender<Event>,
) {
    tokio::time::sleep(after).await;
    let reason = match open_and_pump(dial, attempt, hello, queue, &events).await {
        Ok(()) => "the coordinator ended the stream".to_owned(),
        Err(reason) => reason,
    };
    // Nobody listens any more where the worker is leaving.
    let _ = events.send(Event::Down { attempt, reason }).await;
}

async fn open_and_pump(
    dial: Dial,
    attempt: Attempt,
    hello: Hello,
    queue: mpsc::Receiver<SessionRequest>,
    events: &mpsc::Sender<Event>,
) -> Result<(), String> {
    let channel = dial.connect().await.map_err(|e| chain(&e))?;
    let mut client = CoordinatorServiceClient::new(channel)
        .max_decoding_message_size(mcl_proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(mcl_proto::MAX_MESSAGE_BYTES);
    let greeting = SessionRequest { message: Some(session_request::Message::Hello(hello)) };
    let requests = tokio_stream::once(greeting).chain(ReceiverStream::new(queue));
    let opened = tokio::time::timeout(ATTEMPT, client.session(requests)).await;
    let opened = opened.map_err(|_| "it does not answer".to_owned())?;
    let mut responses = opened.map_err(|e| status(&e))?.into_inner();
    let mut first = true;
    loop {
        let next = responses.message();
        let next = if first {
            let silent = |_| "it accepts the stream and says nothing".to_owned();
            tokio::time::timeout(ATTEMPT, next).await.map_err(silent)?
        } else {
            next.await
        };
        first = false;
        let Some(message) = next.map_err(|e| status(&e))? else { return Ok(()) };
        if events.send(Event::Said { attempt, message }).await.is_err() {
            return Ok(());
        }
    }
}

fn status(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// An error and its causes: what the transport says first is of little use to a person.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_leave_the_scheme_out_but_not_the_host() {
        for good in ["http://127.0.0.1:7070", "127.0.0.1:7070", "coordinator:7070", "http://[::1]:1"] {
            assert!(dial(good, None).is_ok(), "{good}");
        }
        for bad in ["", "http://", "http://a b:1"] {
            assert!(matches!(dial(bad, None), Err(WorkerError::Address { .. })), "{bad}");
        }
    }
}
