//! Lists as streams: pieces that fit into a message however many objects there are.

use futures::stream;
use tonic::codegen::BoxStream;

/// Objects in one message.
const PIECE: usize = 128;

/// `all` in pieces, each made into a message.
pub fn pieces<T: Send + 'static, M: Send + 'static>(
    all: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> BoxStream<M> {
    let mut all = all.into_iter().peekable();
    let mut messages = Vec::new();
    while all.peek().is_some() {
        messages.push(Ok(message(all.by_ref().take(PIECE).collect())));
    }
    Box::pin(stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn nothing_is_lost_between_pieces() {
        let sizes: Vec<usize> =
            pieces((0..300).collect(), |piece: Vec<u32>| piece).map(|p| p.unwrap().len()).collect().await;
        assert_eq!(sizes, [128, 128, 44]);
        assert_eq!(pieces(Vec::<u32>::new(), |piece| piece).count().await, 0);
    }
}
