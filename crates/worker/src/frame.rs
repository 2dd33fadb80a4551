//! Frames on a rank's stdin and stdout: a varint length, then one protobuf message.
//!
//! The same bytes as prost's `encode_length_delimited`, so either side may use that instead. Invariants: a
//! length beyond the limit is refused before anything is allocated for it; the end of the stream between
//! two frames is an end, inside one it is an error. Left out: resynchronisation. After an error the
//! stream is of no further use.

use prost::Message;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame: what a gRPC message may hold, a relayed command may hold.
pub const MAX_FRAME_BYTES: usize = mcl_proto::MAX_MESSAGE_BYTES;

/// Bytes of the longest varint.
const VARINT_BYTES: u32 = 10;

/// A frame that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The pipe broke.
    #[error("the pipe broke: {0}")]
    Io(#[from] io::Error),
    /// The length is no varint.
    #[error(
        "expected a frame's length, found bytes that are none: something else writes to this pipe \
         (a rank's stdout is for frames alone, text belongs on stderr)"
    )]
    Length,
    /// The frame would be too large.
    #[error(
        "a frame of {found} bytes, expected at most {limit}: either something else writes to this pipe \
         (a rank's stdout is for frames alone, text belongs on stderr) or the message must be split"
    )]
    TooLarge {
        /// Bytes announced.
        found: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the pipe ended inside a frame: {found} of {expected} bytes came")]
    Truncated {
        /// Bytes that came.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The bytes are no message.
    #[error(
        "{bytes} bytes that are no message of this protocol: {source}; something else writes to this pipe \
         (a rank's stdout is for frames alone, text belongs on stderr) or the builds differ"
    )]
    Decode {
        /// Length of the frame.
        bytes: u64,
        /// What is wrong.
        source: prost::DecodeError,
    },
}

/// Reads the next frame; `None` where the stream ends before one begins. The reader should be buffered.
/// Not cancel-safe: a dropped call may have taken half a frame.
///
/// # Errors
/// When the pipe breaks or holds something else than frames of at most [`MAX_FRAME_BYTES`].
pub async fn read_frame<M, R>(reader: &mut R) -> Result<Option<M>, FrameError>
where
    M: Message + Default,
    R: AsyncRead + Unpin,
{
    let Some(expected) = read_length(reader).await? else { return Ok(None) };
    if expected > MAX_FRAME_BYTES as u64 {
        return Err(FrameError::TooLarge { found: expected, limit: MAX_FRAME_BYTES });
    }
    // Grows with what arrives, so that a length that is not one costs no memory.
    let mut bytes = Vec::new();
    reader.take(expected).read_to_end(&mut bytes).await?;
    let found = bytes.len() as u64;
    if found < expected {
        return Err(FrameError::Truncated { found, expected });
    }
    M::decode(bytes.as_slice()).map(Some).map_err(|source| FrameError::Decode { bytes: expected, source })
}

async fn read_length<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<u64>, FrameError> {
    let mut length = 0_u64;
    for place in 0..VARINT_BYTES {
        let mut byte = [0_u8];
        if reader.read(&mut byte).await? == 0 {
            return if place == 0 {
                Ok(None)
            } else {
                Err(FrameError::Truncated { found: u64::from(place), expected: u64::from(place) + 1 })
            };
        }
        let [byte] = byte;
        let part = u64::from(byte & 0x7f);
        let shifted = part << (7 * place);
        if shifted >> (7 * place) != part {
            return Err(FrameError::Length);
        }
        length |= shifted;
        if byte & 0x80 == 0 {
            return Ok(Some(length));
        }
    }
    Err(FrameError::Length)
}

/// Writes one frame and flushes it.
///
/// # Errors
/// When the pipe breaks or the message is larger than [`MAX_FRAME_BYTES`].
pub async fn write_frame<M, W>(writer: &mut W, message: &M) -> Result<(), FrameError>
where
    M: Message,
    W: AsyncWrite + Unpin,
{
    let bytes = message.encoded_len();
    if bytes > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge { found: bytes as u64, limit: MAX_FRAME_BYTES });
    }
    writer.write_all(&message.encode_length_delimited_to_vec()).await?;
    writer.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_proto::v1::{RankCommand, Stop, rank_command};

    fn stop(reason: &str) -> RankCommand {
        RankCommand { command: Some(rank_command::Command::Stop(Stop { reason: reason.into() })) }
    }

    #[tokio::test]
    async fn frames_come_back_as_they_went_and_as_prost_writes_them() {
        let sent = [stop(""), stop("a"), RankCommand::default(), stop(&"x".repeat(300_000))];
        let mut bytes = Vec::new();
        for message in &sent {
            let before = bytes.len();
            write_frame(&mut bytes, message).await.unwrap();
            assert_eq!(bytes[before..], message.encode_length_delimited_to_vec());
        }
        let mut reader = bytes.as_slice();
        for message in &sent {
            assert_eq!(read_frame(&mut reader).await.unwrap().as_ref(), Some(message));
        }
        assert!(read_frame::<RankCommand, _>(&mut reader).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_and_costs_no_memory() {
        let read = async |bytes: &[u8]| read_frame::<RankCommand, _>(&mut &*bytes).await.unwrap_err();
        assert!(matches!(read(&[0xff; 12]).await, FrameError::Length));
        assert!(matches!(read(&[0xff, 0xff, 0xff, 0xff, 0x7f]).await, FrameError::TooLarge { .. }));
        assert!(matches!(read(&[0x80]).await, FrameError::Truncated { .. }));
        assert!(matches!(read(b"hello").await, FrameError::Truncated { found: 4, expected: 104 }));
        assert!(matches!(read(&[1, 0xff]).await, FrameError::Decode { .. }));
    }
}
