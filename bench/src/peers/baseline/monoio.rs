//! A TCP proxy on monoio: a task for each direction, that waits for readiness and then moves bytes
//! by direct calls. monoio's own splice goes through a kernel thread for each operation.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;

use super::mover::{CHUNK, Mover, Stop};
use super::{begin_connect, listen_on};
use crate::serve::host::block_on;

pub fn run(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = listen_on(listen)?;
    block_on(async move {
        let watched = monoio::net::TcpListener::from_std(listener.try_clone()?)?;
        let scratch = Rc::new(RefCell::new(vec![0; CHUNK]));
        loop {
            watched.readable(false).await?;
            while let Some(client) = accept(&listener)? {
                monoio::spawn(serve(client, to, Rc::clone(&scratch)));
            }
        }
    })?
}

fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((client, _)) => Ok(Some(client)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A connection: for direct calls, and for the ring to watch. A safe way from one to the other is
/// not there, so it is two descriptors.
struct Connection {
    socket: TcpStream,
    watched: monoio::net::TcpStream,
}

impl Connection {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let watched = monoio::net::TcpStream::from_std(socket.try_clone()?)?;
        Ok(Self { socket, watched })
    }

    async fn connect(to: SocketAddr) -> io::Result<Self> {
        let connection = Self::new(begin_connect(to)?)?;
        connection.watched.writable(false).await?;
        match connection.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(connection),
        }
    }
}

async fn serve(client: TcpStream, to: SocketAddr, scratch: Rc<RefCell<Vec<u8>>>) {
    let Ok(client) = Connection::new(client) else { return };
    let Ok(endpoint) = Connection::connect(to).await else { return };
    let (client, endpoint) = (Rc::new(client), Rc::new(endpoint));
    let up = relay(Rc::clone(&client), Rc::clone(&endpoint), Rc::clone(&scratch));
    let up = monoio::spawn(up);
    relay(endpoint, client, scratch).await;
    up.await;
}

async fn relay(from: Rc<Connection>, to: Rc<Connection>, scratch: Rc<RefCell<Vec<u8>>>) {
    let mut mover = Mover::default();
    let mut waits = Stop::Drained;
    loop {
        let waited = match waits {
            Stop::Drained => from.watched.readable(false).await,
            Stop::Blocked => to.watched.writable(false).await,
            Stop::Ended => return,
        };
        let moved = mover.run(&from.socket, &to.socket, &mut scratch.borrow_mut());
        match (waited, moved) {
            (Ok(()), Ok(stop)) => waits = stop,
            _ => {
                // The other direction waits for one of these, and hears of it.
                let _ = from.socket.shutdown(Shutdown::Both);
                let _ = to.socket.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}
