// npm socket.io with its default WebSocket engine, ws, each client in a room of
// its user and in a room of ten. As socket.io/docs/v4/performance-tuning and
// /memory-usage advise, bufferutil is installed and the first request of a
// session is let go. perMessageDeflate is off, its default. Its argument is the
// heartbeat in milliseconds.

import { Server } from "socket.io";
import { dataFor, newHTTP, serve } from "./server.mjs";

const http = newHTTP();
const io = new Server(http, { perMessageDeflate: false, serveClient: false, pingInterval: Number(process.argv[2]) });
io.on("connection", (socket) => {
	const { user, room } = socket.handshake.query;
	socket.join(["user:" + user, "room:" + room]);
	socket.conn.request = null;
});

const data = dataFor('42["bench",""]');

serve(http, {
	data,
	conns: () => io.of("/").sockets.size,
	broadcast: () => io.emit("bench", data),
	push: (user, data) => io.to("user:" + user).emit("bench", data),
});
