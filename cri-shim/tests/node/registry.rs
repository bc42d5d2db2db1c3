//! A registry with one image, on the loopback of the test's machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Blobs = BTreeMap<String, (String, Vec<u8>)>;

/// Serves the image in an OCI archive, and returns the name under which it is pulled.
pub async fn serve(archive: &[u8]) -> String {
    let mut blobs = Blobs::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            let document: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
            let kind = document.and_then(|document| Some(document.get("mediaType")?.as_str()?.to_owned()));
            blobs.insert(format!("sha256:{hex}"), (kind.unwrap_or_default(), bytes));
        }
    }
    let manifest = blobs.values().find(|(kind, _)| kind.contains("manifest")).unwrap().clone();
    blobs.insert("1".to_owned(), manifest);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/large:1", listener.local_addr().unwrap());
    let blobs = Arc::new(blobs);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let blobs = blobs.clone();
            // Who stops reading in the middle is no failure of the registry.
            tokio::spawn(async move { drop(answer(connection, &blobs).await) });
        }
    });
    name
}

/// Answers one request: the last part of its path is a tag or a digest.
async fn answer(connection: TcpStream, blobs: &Blobs) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    let (mut first, mut line) = (String::new(), String::new());
    connection.read_line(&mut first).await?;
    while connection.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some((kind, bytes)) = blobs.get(path.rsplit('/').next().unwrap_or_default()) else {
        return connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    };
    let length = bytes.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    connection.write_all(head.as_bytes()).await?;
    if method == "GET" {
        connection.write_all(bytes).await?;
    }
    connection.shutdown().await?;
    // Closed by the other side: what it has not read stays readable.
    connection.read_to_end(&mut Vec::new()).await.map(drop)
}
