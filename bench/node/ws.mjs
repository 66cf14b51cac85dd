// npm ws as its README (github.com/websockets/ws) advises: "Server broadcast"
// is the loop below, which sends a Buffer as text, and "Opt-in for performance" is bufferutil, which it takes
// when it is installed. perMessageDeflate is off, its default. It sends no
// pings.

import { WebSocket, WebSocketServer } from "ws";
import { dataFor, newHTTP, serve } from "./server.mjs";

const http = newHTTP();
const wss = new WebSocketServer({ server: http, perMessageDeflate: false });
const users = new Map();

wss.on("connection", (socket, request) => {
	const user = new URLSearchParams(request.url.slice(request.url.indexOf("?"))).get("user");
	users.set(user, socket);
	socket.on("error", () => {});
	socket.on("close", () => users.delete(user));
});

const event = (data) => JSON.stringify({ event: "bench", data });
const data = dataFor(event(""));
const text = Buffer.from(event(data));

serve(http, {
	data,
	conns: () => users.size,
	broadcast: () => {
		for (const client of wss.clients) {
			if (client.readyState === WebSocket.OPEN) client.send(text, { binary: false });
		}
	},
	push: (user, data) => users.get(user).send(event(data)),
});
