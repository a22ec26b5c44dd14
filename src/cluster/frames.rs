//! Core frames over QUIC streams.
//!
//! Never here: what a frame means. Invariant: a length is checked before a byte is reserved for it.

use std::time::Duration;

use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use crate::core::codec::{self, CodecError, FRAME_MAX_BYTES, HEADER_BYTES, Header, Message};

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer sent what is not a frame of ours: refuse and count it.
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the stream broke while reading: {0}")]
    Read(#[from] ReadError),
    #[error("the stream broke while writing: {0}")]
    Write(#[from] WriteError),
    #[error("no whole frame came within {0} ms")]
    TimedOut(u128),
    #[error("the stream ended where a frame was wanted")]
    Ended,
}

impl FrameError {
    /// The name under which a peer's fault is counted; none if the stream merely broke.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            FrameError::Codec(error) => Some(error.reason()),
            FrameError::TimedOut(_) => Some("frame_timeout"),
            FrameError::Ended => Some("frame_missing"),
            FrameError::Read(_) | FrameError::Write(_) => None,
        }
    }
}

/// The next frame of any kind; none if the stream ended between frames.
pub async fn read_frame(recv: &mut RecvStream) -> Result<Option<(Header, Vec<u8>)>, FrameError> {
    read_frame_up_to(recv, FRAME_MAX_BYTES).await
}

/// The next frame, refused if its payload is longer than `payload_max_bytes`.
pub async fn read_frame_up_to(
    recv: &mut RecvStream,
    payload_max_bytes: usize,
) -> Result<Option<(Header, Vec<u8>)>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    match recv.read_exact(&mut header).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(cut_off(error, HEADER_BYTES)),
    }
    let header = Header::decode(&header)?;
    if header.payload_bytes > payload_max_bytes {
        return Err(CodecError::TooLong(header.payload_bytes).into());
    }
    let mut payload = vec![0; header.payload_bytes];
    recv.read_exact(&mut payload).await.map_err(|error| cut_off(error, header.payload_bytes))?;
    Ok(Some((header, payload)))
}

/// The one message that must come next, whole, within `timeout`.
pub async fn read_message<M: Message>(
    recv: &mut RecvStream,
    payload_max_bytes: usize,
    timeout: Duration,
) -> Result<M, FrameError> {
    let frame = tokio::time::timeout(timeout, read_frame_up_to(recv, payload_max_bytes))
        .await
        .map_err(|_| FrameError::TimedOut(timeout.as_millis()))??;
    let (header, payload) = frame.ok_or(FrameError::Ended)?;
    Ok(codec::decode_payload(header, &payload)?)
}

/// Writes one frame. It waits while the peer's window is full.
pub async fn write_frame<M: Message>(send: &mut SendStream, message: &M) -> Result<(), FrameError> {
    let frame = codec::encode_frame(message)?;
    send.write_all(&frame).await?;
    Ok(())
}

fn cut_off(error: ReadExactError, wanted: usize) -> FrameError {
    match error {
        ReadExactError::FinishedEarly(found) => CodecError::CutOff { found, wanted }.into(),
        ReadExactError::ReadError(error) => error.into(),
    }
}
