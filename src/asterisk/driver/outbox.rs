//! What goes to one Asterisk: finds its address, keeps a connection where the transport has some, and says
//! when it cannot be reached. What is to be sent again, and when, is the adapter's affair.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sockets::Sockets;
use crate::asterisk::event::{AttachmentId, Event, Transport};
use crate::asterisk::header;
use crate::asterisk::settings::AttachmentSettings;
use crate::config::sip::SIP_PORT;

/// Messages that may wait. There is one in flight at a time, and its repetitions.
const WAITING_MAX: usize = 16;
/// How long a name is believed.
const NAME_KEPT: Duration = Duration::from_secs(60);
/// How long the resolver may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

pub struct Outbox(mpsc::Sender<Vec<u8>>);

impl Outbox {
    pub fn start(
        id: AttachmentId,
        settings: &AttachmentSettings,
        sockets: Arc<Sockets>,
        events: mpsc::Sender<Event>,
        tracker: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        let (outbox, waiting) = mpsc::channel(WAITING_MAX);
        let uri = header::uri(&settings.uri).ok();
        let (host, port) = uri.map_or_else(Default::default, |uri| (uri.host, uri.port.unwrap_or(SIP_PORT)));
        let task = Task { host, port, resolved: None, transport: settings.transport, sockets, connection: None };
        let cancel = cancel.clone();
        tracker.spawn(async move { cancel.run_until_cancelled_owned(task.run(id, waiting, events)).await });
        Self(outbox)
    }

    /// What does not fit in is lost, as it could be in the network: it is sent again.
    pub fn send(&self, bytes: Vec<u8>) {
        let _ = self.0.try_send(bytes);
    }
}

struct Task {
    host: String,
    port: u16,
    resolved: Option<(SocketAddr, Instant)>,
    transport: Transport,
    sockets: Arc<Sockets>,
    connection: Option<mpsc::Sender<Vec<u8>>>,
}

impl Task {
    async fn run(mut self, id: AttachmentId, mut waiting: mpsc::Receiver<Vec<u8>>, events: mpsc::Sender<Event>) {
        loop {
            let lost = async {
                match &self.connection {
                    Some(connection) => connection.closed().await,
                    None => std::future::pending().await,
                }
            };
            let result = tokio::select! {
                biased;
                () = lost => {
                    self.connection = None;
                    Err(io::ErrorKind::ConnectionAborted.into())
                }
                bytes = waiting.recv() => match bytes {
                    Some(bytes) => self.send(bytes).await,
                    None => return,
                },
            };
            if let Err(error) = result {
                tracing::debug!(host = self.host, %error, "an Asterisk cannot be reached");
                self.resolved = None;
                if events.send(Event::Unreachable { attachment: id }).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let to = self.address().await?;
        if self.transport == Transport::Udp {
            return self.sockets.send_datagram(to, &bytes).await;
        }
        if self.connection.is_none() {
            self.connection = Some(self.sockets.connect(to).await?);
        }
        let connection = self.connection.as_ref().expect("connected just now");
        connection.try_send(bytes).map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    async fn address(&mut self) -> io::Result<SocketAddr> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        if let Some((address, at)) = self.resolved
            && at.elapsed() < NAME_KEPT
        {
            return Ok(address);
        }
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let address = tokio::time::timeout(RESOLVE_MAX, lookup).await??.next().ok_or(io::ErrorKind::NotFound)?;
        self.resolved = Some((address, Instant::now()));
        Ok(address)
    }
}
