//! A listener with limits: how many connections at a time, and how long one may be silent.
//!
//! Without them, clients that connect and say nothing would use up the node's file descriptors.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Limits of the HTTP connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at a time; more of them wait in the system's queue.
    pub connections_max: usize,
    /// A connection on which nothing was read or written for this long is closed.
    /// Longer than a request may take, so that a slow answer is not cut off.
    pub silence_max: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { connections_max: 1_024, silence_max: Duration::from_secs(75) }
    }
}

/// Accepts connections within the limits.
pub struct LimitedListener {
    listener: TcpListener,
    limits: ConnectionLimits,
    permits: Arc<Semaphore>,
}

impl LimitedListener {
    pub fn new(listener: TcpListener, limits: ConnectionLimits) -> Self {
        Self { listener, limits, permits: Arc::new(Semaphore::new(limits.connections_max)) }
    }
}

impl Listener for LimitedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        // axum's own accept, which waits and goes on when the system is short of descriptors.
        let (stream, from) = Listener::accept(&mut self.listener).await;
        // Small answers must not wait for more; a socket that refuses the option works all the same.
        let _ = stream.set_nodelay(true);
        let silence = Box::pin(tokio::time::sleep(self.limits.silence_max));
        (Connection { stream, silence, silence_max: self.limits.silence_max, _permit: permit }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when it is silent for too long.
pub struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn progressed(&mut self) {
        let until = Instant::now() + self.silence_max;
        self.silence.as_mut().reset(until);
    }

    /// What a pending operation answers: still pending, or that the silence was too long.
    fn pending<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.silence.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was silent for too long")))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buf) {
            Poll::Ready(result) => {
                self.progressed();
                Poll::Ready(result)
            }
            Poll::Pending => self.pending(context),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, buf) {
            Poll::Ready(result) => {
                self.progressed();
                Poll::Ready(result)
            }
            Poll::Pending => self.pending(context),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn limited(connections_max: usize, silence_max: Duration) -> (LimitedListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (LimitedListener::new(listener, ConnectionLimits { connections_max, silence_max }), address)
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let (mut listener, address) = limited(1, Duration::from_millis(20)).await;
        let _client = TcpStream::connect(address).await.expect("connects");
        let (mut connection, _) = listener.accept().await;
        let error = connection.read_u8().await.expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn one_connection_more_than_allowed_waits_until_another_ends() {
        let (mut listener, address) = limited(1, Duration::from_secs(60)).await;
        let mut first = TcpStream::connect(address).await.expect("connects");
        let _second = TcpStream::connect(address).await.expect("the system's queue takes it");
        let (connection, _) = listener.accept().await;
        first.write_u8(1).await.expect("writes");
        let mut waiting = std::pin::pin!(listener.accept());
        assert!(poll_once(waiting.as_mut()).await.is_none(), "the limit is reached");
        drop(connection);
        waiting.await;
    }

    /// Polls once: what is ready at once is given.
    async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}
