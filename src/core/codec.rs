//! bincode in one place: frames between nodes, and rows on disk.
//!
//! A frame is `magic (2) | version (1) | kind (1) | payload length (4, little endian) | payload`. The
//! length is checked before anything is read, the decoder has a limit of its own, and bytes left over are
//! an error. bincode 2.0.1 is pinned and unmaintained (RUSTSEC-2025-0141); its `legacy` configuration is
//! used because a maintained crate, wincode, writes the very same bytes: that is the way out.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"KF";
/// The version of the protocol between nodes that this program speaks.
pub const PROTOCOL_VERSION: u8 = 1;
/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 8;
/// The largest payload of a frame, in bytes. One record of the greatest size fits with room to spare.
pub const FRAME_MAX_BYTES: usize = 256 * 1024;
/// The version of rows on disk.
pub const ROW_VERSION: u8 = 1;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<FRAME_MAX_BYTES>> =
    bincode::config::legacy().with_limit::<FRAME_MAX_BYTES>();

/// Why bytes are not a frame or a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the frame does not begin with the magic bytes")]
    Magic,
    #[error("protocol version {0} is not known here (this program speaks {PROTOCOL_VERSION})")]
    Version(u8),
    #[error("kind {found} came where {wanted} was wanted")]
    Kind { found: u8, wanted: u8 },
    #[error("the frame has {0} bytes, at most {FRAME_MAX_BYTES} are allowed")]
    TooLong(usize),
    #[error("the frame is cut off: {found} bytes of {wanted}")]
    CutOff { found: usize, wanted: usize },
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    #[error("row version {0} is not known here (this program knows {ROW_VERSION})")]
    RowVersion(u8),
    #[error("the payload is malformed: {0}")]
    Payload(String),
}

impl CodecError {
    /// A short name for counting refusals; the set of names is fixed.
    pub fn reason(&self) -> &'static str {
        match self {
            CodecError::Magic => "frame_magic",
            CodecError::Version(_) => "frame_version",
            CodecError::Kind { .. } => "frame_kind",
            CodecError::TooLong(_) => "frame_too_long",
            CodecError::CutOff { .. } => "frame_cut_off",
            CodecError::LeftOver(_) => "frame_left_over",
            CodecError::RowVersion(_) => "row_version",
            CodecError::Payload(_) => "frame_payload",
        }
    }
}

/// A message that travels in frames of its own kind.
pub trait Message: Serialize + DeserializeOwned {
    const KIND: u8;
}

/// The checked header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub payload_bytes: usize,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, CodecError> {
        let [m0, m1, version, kind, length @ ..] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(CodecError::Magic);
        }
        if version != PROTOCOL_VERSION && !mutant!(VersionIgnored) {
            return Err(CodecError::Version(version));
        }
        let payload_bytes = u32::from_le_bytes(length) as usize;
        if payload_bytes > FRAME_MAX_BYTES {
            return Err(CodecError::TooLong(payload_bytes));
        }
        Ok(Self { kind, payload_bytes })
    }
}

/// A whole frame. An error means that the message is too large to travel, which is the sender's fault.
pub fn encode_frame<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![MAGIC[0], MAGIC[1], PROTOCOL_VERSION, M::KIND, 0, 0, 0, 0];
    bincode::serde::encode_into_std_write(message, &mut frame, CONFIG)
        .map_err(|error| CodecError::Payload(error.to_string()))?;
    let payload_bytes = frame.len() - HEADER_BYTES;
    if payload_bytes > FRAME_MAX_BYTES {
        return Err(CodecError::TooLong(payload_bytes));
    }
    let length = u32::try_from(payload_bytes).expect("under the frame limit");
    frame[4..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Decodes the payload that came behind `header`.
pub fn decode_payload<M: Message>(header: Header, payload: &[u8]) -> Result<M, CodecError> {
    if header.kind != M::KIND {
        return Err(CodecError::Kind { found: header.kind, wanted: M::KIND });
    }
    if mutant!(ShortReadAccepted) {
        let mut filled = payload.to_vec();
        filled.resize(header.payload_bytes.max(payload.len()), 0);
        return decode(&filled);
    }
    if payload.len() != header.payload_bytes {
        return Err(CodecError::CutOff { found: payload.len(), wanted: header.payload_bytes });
    }
    decode(payload)
}

/// Decodes one whole frame, header included.
pub fn decode_frame<M: Message>(frame: &[u8]) -> Result<M, CodecError> {
    let (header, payload) = frame
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(CodecError::CutOff { found: frame.len(), wanted: HEADER_BYTES })?;
    decode_payload(Header::decode(header)?, payload)
}

/// A row on disk: its version and the value.
pub fn encode_row<T: Serialize>(value: &T) -> Vec<u8> {
    let mut row = Vec::new();
    append_row(value, &mut row);
    row
}

/// Writes a row behind what is there.
pub fn append_row<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    bytes.push(ROW_VERSION);
    let config = bincode::config::legacy();
    bincode::serde::encode_into_std_write(value, bytes, config).expect("our own types encode into memory");
}

pub fn decode_row<T: DeserializeOwned>(row: &[u8]) -> Result<T, CodecError> {
    let (version, payload) = row.split_first().ok_or(CodecError::CutOff { found: 0, wanted: 1 })?;
    if *version != ROW_VERSION {
        return Err(CodecError::RowVersion(*version));
    }
    decode(payload)
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let (value, read) =
        bincode::serde::decode_from_slice(payload, CONFIG).map_err(|error| CodecError::Payload(error.to_string()))?;
    match payload.len() - read {
        0 => Ok(value),
        _ if mutant!(LeftOverAccepted) => Ok(value),
        left => Err(CodecError::LeftOver(left)),
    }
}
