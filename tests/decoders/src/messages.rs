//! What peers say: gRPC messages, and frames on a rank's pipes.

use futures::executor::block_on;
use mcl_proto::v1;
use mcl_worker::read_frame;
use prost::Message;

/// Decoders of single messages, by their number.
const MESSAGES: [fn(&[u8]); 12] = [
    message::<v1::SessionRequest>,
    message::<v1::SessionResponse>,
    message::<v1::RankCommand>,
    message::<v1::RankEvent>,
    message::<v1::PutSliceRequest>,
    message::<v1::CommitCheckpointRequest>,
    message::<v1::ListCheckpointsResponse>,
    message::<v1::GetManifestResponse>,
    message::<v1::GetSliceResponse>,
    message::<v1::SubmitJobRequest>,
    message::<v1::GetStatusResponse>,
    checked_fields,
];

/// One message; the first byte says which.
pub fn messages(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    if let Some(decode) = MESSAGES.get(usize::from(*which) % MESSAGES.len()) {
        decode(rest);
    }
}

/// Frames as a worker reads them from a rank, and a rank from its worker.
pub fn frames(bytes: &[u8]) {
    stream::<v1::RankEvent>(bytes);
    stream::<v1::RankCommand>(bytes);
}

fn stream<M: Message + Default>(mut bytes: &[u8]) {
    loop {
        let before = bytes.len();
        match block_on(read_frame::<M, _>(&mut bytes)) {
            Ok(Some(_)) => assert!(bytes.len() < before, "a frame of no bytes"),
            Ok(None) => return assert!(before == 0, "{before} bytes were taken for the end"),
            Err(_) => return,
        }
    }
}

/// Compared as bytes: numbers may be NaN.
fn message<M: Message + Default>(bytes: &[u8]) {
    let Ok(decoded) = M::decode(bytes) else { return };
    let written = decoded.encode_to_vec();
    assert_eq!(written.len(), decoded.encoded_len(), "a length that is not the length");
    let read = M::decode(written.as_slice()).expect("what was written can be read");
    assert_eq!(read.encode_to_vec(), written, "written and read again it is another");
}

/// Fields with a meaning of their own.
fn checked_fields(bytes: &[u8]) {
    if let Ok(token) = v1::FencingToken::decode(bytes) {
        let ours = mcl_proto::token(Some(token)).expect("every token is one");
        assert_eq!(v1::FencingToken::from(ours), token);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(run) = mcl_proto::run_id(text) {
        assert_eq!(run.to_string(), text);
        assert!(!text.contains(['/', '\0']) && text != "." && text != "..", "{text:?} is no folder name");
    }
    if let Ok(digest) = mcl_proto::digest("digest", text) {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
}
