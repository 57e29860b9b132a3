//! Small ClientHellos (RFC 8446, section 4.1.2), made to measure.

/// A ClientHello for `name`, padded with an unknown extension of `padding` bytes, cut into TLS
/// records of at most `fragment` bytes.
pub fn client_hello(name: Option<&str>, padding: u16, fragment: usize) -> Vec<u8> {
    offering(&[], name, padding, fragment)
}

/// The same, of a client that offers protocols (RFC 7301).
pub fn offering(alpn: &[&str], name: Option<&str>, padding: u16, fragment: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    // A GREASE value (RFC 8701) before all others.
    extension(&mut extensions, 0x1a1a, &[]);
    if let Some(name) = name {
        let len = name.len() as u16;
        let mut list = (len + 3).to_be_bytes().to_vec();
        list.push(0);
        list.extend(len.to_be_bytes());
        list.extend(name.as_bytes());
        extension(&mut extensions, 0, &list);
    }
    if !alpn.is_empty() {
        let names: Vec<u8> =
            alpn.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
        extension(&mut extensions, 16, &[&(names.len() as u16).to_be_bytes()[..], &names].concat());
    }
    extension(&mut extensions, 21, &vec![0; usize::from(padding)]);

    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);

    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);

    let mut records = Vec::new();
    for part in message.chunks(fragment) {
        records.extend([22, 3, 1]);
        records.extend((part.len() as u16).to_be_bytes());
        records.extend(part);
    }
    records
}

fn extension(into: &mut Vec<u8>, kind: u16, content: &[u8]) {
    into.extend(kind.to_be_bytes());
    into.extend((content.len() as u16).to_be_bytes());
    into.extend(content);
}
