//! Accepts connections and keeps them, for tests with more of them than one process may hold.
//!
//! Says its address, then obeys its input: a number is said back once so many were accepted; any
//! other word is sent on every connection. Ends with its input.

use std::io::{BufRead as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

#[expect(clippy::print_stdout, reason = "its output is how it answers")]
fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // The standard library listens with a queue of 128, which a burst overflows.
    socket2::SockRef::from(&listener).listen(4096)?;
    println!("{}", listener.local_addr()?);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeper = Arc::clone(&kept);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            keeper.lock().push(stream);
        }
    });
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Ok(count) = line.parse::<usize>() {
            while kept.lock().len() < count {
                std::thread::sleep(Duration::from_millis(10));
            }
            println!("{count}");
        } else {
            for mut stream in kept.lock().iter() {
                // Some may have gone.
                let _ = stream.write_all(line.as_bytes());
            }
        }
    }
    Ok(())
}
