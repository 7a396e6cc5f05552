//! Echo over both paths: one stream, a line every tenth of a second, the network cut in the middle.
//!
//! ```sh
//! cargo run --release --example echo
//! ```

use std::{error::Error, time::Duration};

use sidepath::{Cut, demo::nodes::Nodes, sessions::Preference};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main() -> Result<(), Box<dyn Error>> {
    let nodes = Nodes::start()?;
    nodes.met()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let [alpha, beta] = nodes.endpoints();
        let listener = beta.listen("echo").await?;
        let server = tokio::spawn(async move {
            let mut stream = listener.accept().await?;
            let mut buffer = [0; 1024];
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    stream.closed().await?;
                    return Ok::<_, std::io::Error>(());
                }
                stream.write_all(&buffer[..n]).await?;
            }
        });

        let mut stream = alpha.connect("beta", "echo", Preference::NetworkFirst).await?;
        for number in 0..30_u32 {
            if number == 10 {
                println!("-- the network is cut for a second --");
                nodes.cut(Cut::Network, Duration::from_secs(1))?;
            }
            let start = std::time::Instant::now();
            stream.write_all(&number.to_be_bytes()).await?;
            assert_eq!(stream.read_u32().await?, number);
            let took = start.elapsed();
            println!("{number:2} came back in {took:?}, carried by {:?}", stream.path());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stream.closed().await?;
        server.await??;
        println!("{:?}", stream.stats());
        Ok(())
    })
}
