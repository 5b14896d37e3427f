// The job in node's ws: echo, and `!...` to everybody. node ws_server.cjs PORT
//
// As its documentation advises for speed: no permessage-deflate, the broadcast of its README, and bufferutil, which ws
// takes where it finds it. One process: one core.
const { WebSocket, WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  backlog: 4096,
  perMessageDeflate: false,
});

server.on("connection", (client) => {
  client.on("error", () => client.terminate());
  client.on("message", (said, isBinary) => {
    if (said[0] !== 0x21) {
      client.send(said, { binary: isBinary });
      return;
    }
    for (const each of server.clients) {
      if (each.readyState === WebSocket.OPEN) each.send(said, { binary: isBinary });
    }
  });
});
