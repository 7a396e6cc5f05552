//! A program's own heartbeat that falls back: the watcher tells a cut network from a dead program,
//! because its beats go on through storage.
//!
//! ```sh
//! cargo run --release --example heartbeat
//! ```

use std::{
    error::Error,
    time::{Duration, Instant},
};

use sidepath::{
    Cut,
    demo::nodes::Nodes,
    sessions::{Path, Preference},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const EVERY: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
    let nodes = Nodes::start()?;
    nodes.met()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let [alpha, beta] = nodes.endpoints();
        let listener = beta.listen("heartbeat").await?;
        let beating = tokio::spawn(async move {
            let mut stream = alpha.connect("beta", "heartbeat", Preference::NetworkFirst).await?;
            let mut paths: Vec<Option<Path>> = Vec::new();
            for number in 0..150_u32 {
                stream.write_all(&number.to_be_bytes()).await?;
                if paths.last() != Some(&stream.path()) {
                    paths.push(stream.path());
                }
                tokio::time::sleep(EVERY).await;
            }
            stream.closed().await?;
            Ok::<_, std::io::Error>(paths)
        });
        let mut stream = listener.accept().await?;
        let (mut longest, mut last, mut expected) = (Duration::ZERO, Instant::now(), 0);
        while let Ok(number) = stream.read_u32().await {
            assert_eq!(number, expected, "beats come once, in order");
            expected += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if number == 40 {
                nodes.cut(Cut::Network, Duration::from_secs(1))?;
            }
        }
        stream.closed().await?;
        let paths = beating.await??;
        println!("{expected} beats, the longest silence {longest:?}; carried by {paths:?}");
        Ok(())
    })
}
