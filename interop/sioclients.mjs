// The clients from npm. As a program it connects each over each transport, as
// the users named after the server's URL, and acks what is pushed to them.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(import.meta.url);

/** old: Engine.IO 3, whose clients log in by the URL's query alone. */
export const clients = [
	{ name: "2.3.0", io: require("sio2.3"), old: true },
	{ name: "2.5.0", io: require("sio2.5"), old: true },
	{ name: "3.1.3", io: require("sio3.1").io },
	{ name: "4.8.4", io: require("sio4.8").io },
	{ name: "4.8.4 with msgpack", io: require("sio4.8").io, parser: require("socket.io-msgpack-parser") },
];

export const ways = [["websocket"], ["polling"], ["polling", "websocket"]];

/**
 * A client's socket that begins to connect. claims are what it says of itself,
 * query what is in the URL besides.
 */
export function dial(url, { io, old, parser }, way, { claims = {}, query = {}, namespace = "/", ...options } = {}) {
	return io(url + namespace, {
		forceNew: true,
		transports: way,
		reconnectionDelay: 50,
		reconnectionDelayMax: 200,
		query: { ...(old && claims), ...query },
		...(!old && { auth: claims }),
		...(parser && { parser }),
		...options,
	});
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
	const [url, ...users] = process.argv.slice(2);
	for (const client of clients) {
		for (const way of ways) {
			dial(url, client, way, { claims: { user: users.shift() } }).on("there?", (_, answer) => answer());
		}
	}
	setTimeout(() => process.exit(), 60_000); // if nobody ends it
}
