// The page: pictures and the camera in, the network's answers out.

const [file, drop, canvas, video, hint, status, list, time, slider, camera, turn] = [
  ..."file drop picture video hint status answers time slider camera turn".split(" "),
].map((id) => document.getElementById(id));
const MOST_PIXELS = 4096 ** 2; // that phones hold in a canvas
const MOST_ROWS = 20;
const worker = new Worker("worker.js", { type: "module" });
const level = slider.querySelector("input");
let about, shown, answer, stream, waiting = null, number = 0;

const TASKS = {
  classification: "Says what is on a picture",
  detection: "Finds objects on a picture",
  segmentation: "Tells the class of each pixel",
};

function tell(text, wrong = false) {
  status.textContent = text;
  status.hidden = !text;
  status.classList.toggle("wrong", wrong);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const colour = (index) => `rgb(${about.palette[index].join(" ")})`;

worker.onmessage = ({ data }) => {
  if (data.about) {
    about = data.about;
    document.title = document.getElementById("name").textContent = about.title;
    document.getElementById("does").textContent = `${TASKS[about.how.task]}: ${about.names.length} classes`;
    document.getElementById("about").textContent = about.about;
    const { task } = about.how;
    if (task !== "classification") {
      slider.hidden = false;
      slider.querySelector("span").textContent = task === "detection" ? "Least score" : "Opacity";
      level.value = task === "detection" ? 0.3 : 0.6;
    }
    tell("Ready.");
    ask();
    return;
  }
  if (data.id !== undefined) waiting = null;
  if (data.failed) return tell(data.failed, true);
  if (!stream && data.id !== number) return ask(); // another picture was chosen meanwhile
  answer = data;
  draw();
  ask();
};
worker.onerror = (event) => tell(`this browser cannot run the network: ${event.message ?? "it lacks module workers"}`, true);

/* Gives the worker what is to be answered, if it is idle: the picture once, of the camera always the next one. */
function ask() {
  if (!about || waiting !== null) return;
  if (stream) {
    if (!video.videoWidth) return void setTimeout(ask, 50);
    take(video, video.videoWidth, video.videoHeight);
  }
  if (!shown || answer?.id === number) return;
  waiting = number;
  const { width, height } = shown;
  const rgba = shown.getContext("2d").getImageData(0, 0, width, height).data;
  worker.postMessage({ id: number, rgba, width, height }, [rgba.buffer]);
}

/* What is to be answered next. */
function take(image, width, height) {
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  shown = document.createElement("canvas");
  [shown.width, shown.height] = [width, height].map((side) => Math.max(1, Math.round(side * shrink)));
  shown.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0, shown.width, shown.height);
  number++;
}

async function choose(blob) {
  stop();
  let image;
  try {
    // As it is stored: not in the colours of the screen; turned as its camera was, if the network learned it so.
    const imageOrientation = about?.how.upright === false ? "none" : "from-image";
    image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation });
  } catch {
    return tell(`${blob.name ?? "this"} cannot be read as a picture; choose a JPEG, PNG or WebP file`, true);
  }
  take(image, image.width, image.height);
  image.close();
  [answer, canvas.hidden] = [undefined, false];
  list.replaceChildren();
  time.textContent = "";
  tell(about ? "Looking…" : "Loading the network…");
  paint(shown);
  ask();
}

function paint(picture) {
  [canvas.width, canvas.height, hint.hidden, canvas.hidden] = [picture.width, picture.height, true, false];
  drop.classList.add("filled");
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  return pen;
}

/* The picture with its answer, and the answer in words. */
function draw() {
  const pen = paint(shown), { task } = about.how;
  tell("");
  if (task === "segmentation") overlay(pen);
  const rows =
    task === "detection"
      ? boxes(pen).map(({ index, score }) => ({ index, value: score }))
      : answer.classes.map(({ index, probability, share }) => ({ index, value: probability ?? share }));
  list.replaceChildren(
    ...rows.slice(0, MOST_ROWS).map(({ index, value }) => {
      const [item, line, name, number, bar] = ["li", "div", "b", "span", "hr"].map((tag) => document.createElement(tag));
      [name.textContent, number.textContent] = [about.names[index], percent(value)];
      bar.style.width = `${100 * value}%`;
      if (task !== "classification") bar.style.background = colour(index);
      line.append(name, number);
      item.append(line, bar);
      return item;
    }),
  );
  if (!rows.length) tell("Nothing found; lower the least score.");
  const round = (ms) => (ms < 10 ? ms.toFixed(1) : ms.toFixed(0));
  time.textContent = `network ${round(answer.computed)} ms · preparing ${round(answer.prepared)} ms`;
}

function overlay(pen) {
  const [height, width] = about.size, image = new ImageData(width, height);
  answer.labels.forEach((label, i) => image.data.set([...about.palette[label], 255 * level.value], 4 * i));
  const over = document.createElement("canvas");
  [over.width, over.height] = [width, height];
  over.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(over, 0, 0, canvas.width, canvas.height);
}

function boxes(pen) {
  const { width, height } = canvas, size = Math.max(width, height) / 50;
  const sure = answer.objects.filter(({ score }) => score >= level.value);
  pen.lineWidth = size / 6;
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const { index, score, box } of [...sure].reverse()) {
    const [left, top, right, bottom] = box.map((side, i) => side * [width, height][i % 2]);
    const text = `${about.names[index]} ${score.toFixed(2)}`, wide = pen.measureText(text).width + size / 2;
    pen.strokeStyle = pen.fillStyle = colour(index);
    pen.strokeRect(left, top, right - left, bottom - top);
    const at = [Math.min(left, width - wide), Math.max(0, top - 1.3 * size)];
    pen.fillRect(...at, wide, 1.3 * size);
    const [r, g, b] = about.palette[index];
    pen.fillStyle = 0.3 * r + 0.6 * g + 0.1 * b > 140 ? "black" : "white";
    pen.fillText(text, at[0] + size / 4, at[1] + size / 8);
  }
  return sure;
}

let facing = "environment";

async function start() {
  if (!navigator.mediaDevices) return tell("the camera needs a page from https or from localhost", true);
  stop();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing } });
  } catch (error) {
    return tell(`the camera cannot be used: ${error.message}`, true);
  }
  video.srcObject = stream;
  await video.play();
  [camera.textContent, turn.hidden, answer] = ["Stop the camera", false, undefined];
  ask();
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  [stream, video.srcObject, camera.textContent, turn.hidden] = [null, null, "Use the camera", true];
}

camera.onclick = () => (stream ? stop() : start());
turn.onclick = () => {
  facing = facing === "user" ? "environment" : "user";
  start();
};
document.getElementById("choose").onclick = () => file.click();
file.onchange = () => {
  if (file.files[0]) choose(file.files[0]);
  file.value = ""; // or the same file could not be chosen again
};
level.oninput = () => answer && draw();
for (const name of ["dragover", "dragleave", "drop"])
  addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
  });
addEventListener("drop", ({ dataTransfer }) => dataTransfer.files[0] && choose(dataTransfer.files[0]));
addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && choose(clipboardData.files[0]));
