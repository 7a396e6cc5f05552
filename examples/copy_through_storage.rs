//! Bulk through storage while the network is fine: a pair of control and data, 64 MiB, and what the
//! network saw of it.
//!
//! ```sh
//! cargo run --release --example copy_through_storage
//! ```

use std::{error::Error, time::Instant};

use sidepath::{demo::nodes::Nodes, sessions::DataSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BYTES: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let nodes = Nodes::start()?;
    nodes.met()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let [alpha, beta] = nodes.endpoints();
        let listener = beta.listen("copy").await?;
        let store = tokio::spawn(async move {
            let mut pair = DataSocket::accept(&beta, &listener).await?;
            let expected = pair.control.read_u64().await?;
            let mut sum = 0_u64;
            let mut got = 0_u64;
            let mut buffer = vec![0; 256 << 10];
            let mut stream = pair.streams.remove(0);
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                got += n as u64;
                sum = buffer[..n].iter().fold(sum, |s, b| s.rotate_left(1) ^ u64::from(*b));
            }
            stream.closed().await?;
            // The verdict goes over the control stream.
            pair.control.write_u64(if got == expected { sum } else { 0 }).await?;
            pair.control.closed().await?;
            Ok::<_, std::io::Error>(())
        });

        let mut pair = DataSocket::connect(&alpha, "beta", "copy", 1).await?;
        pair.control.write_u64(BYTES as u64).await?;
        let bytes: Vec<u8> = (0..BYTES).map(|i| (i * 31 + i / 4096).to_le_bytes()[0]).collect();
        let sum = bytes.iter().fold(0_u64, |s, b| s.rotate_left(1) ^ u64::from(*b));
        let start = Instant::now();
        let mut stream = pair.streams.remove(0);
        stream.write_all(&bytes).await?;
        stream.closed().await?;
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(pair.control.read_u64().await?, sum, "what was stored is what was sent");
        pair.control.closed().await?;
        store.await??;
        let by = stream.stats().sent_by;
        println!(
            "{BYTES} bytes in {seconds:.2} s: {} by storage, {} by network",
            by.storage, by.network
        );
        Ok(())
    })
}
