package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// The messages of myshoes.proto, described here so that no generated code is needed. An enum has the encoding of its number.
var shoesFile = describe()

func describe() protoreflect.FileDescriptor {
	field := func(number int32, name string, kind descriptorpb.FieldDescriptorProto_Type, repeated bool) *descriptorpb.FieldDescriptorProto {
		label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		if repeated {
			label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
		}
		return &descriptorpb.FieldDescriptorProto{
			Name: proto.String(name), Number: proto.Int32(number), Type: kind.Enum(), Label: label.Enum(),
		}
	}
	text, number := descriptorpb.FieldDescriptorProto_TYPE_STRING, descriptorpb.FieldDescriptorProto_TYPE_INT32
	message := func(name string, fields ...*descriptorpb.FieldDescriptorProto) *descriptorpb.DescriptorProto {
		return &descriptorpb.DescriptorProto{Name: proto.String(name), Field: fields}
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name:    proto.String("shoes.proto"),
		Package: proto.String("whywaita.myshoes"),
		Syntax:  proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			message("AddInstanceRequest", field(1, "runner_name", text, false), field(2, "setup_script", text, false),
				field(3, "resource_type", number, false), field(4, "labels", text, true)),
			message("AddInstanceResponse", field(1, "cloud_id", text, false), field(2, "shoes_type", text, false),
				field(3, "ip_address", text, false), field(4, "resource_type", number, false)),
			message("DeleteInstanceRequest", field(1, "cloud_id", text, false), field(2, "labels", text, true)),
			message("DeleteInstanceResponse"),
		},
	}, nil)
	if err != nil {
		panic(err)
	}
	return file
}

func newMessage(name protoreflect.Name) *dynamicpb.Message {
	return dynamicpb.NewMessage(shoesFile.Messages().ByName(name))
}

func set(message *dynamicpb.Message, name protoreflect.Name, value any) {
	message.Set(message.Descriptor().Fields().ByName(name), protoreflect.ValueOf(value))
}

func get(message *dynamicpb.Message, name protoreflect.Name) any {
	return message.Get(message.Descriptor().Fields().ByName(name)).Interface()
}

func add(ctx context.Context, connection *grpc.ClientConn, name, script string, resourceType int, labels []string) (line, error) {
	request, response := newMessage("AddInstanceRequest"), newMessage("AddInstanceResponse")
	set(request, "runner_name", name)
	set(request, "setup_script", script)
	set(request, "resource_type", int32(resourceType))
	list := request.Mutable(request.Descriptor().Fields().ByName("labels")).List()
	for _, label := range labels {
		list.Append(protoreflect.ValueOfString(label))
	}
	if err := connection.Invoke(ctx, "/whywaita.myshoes.Shoes/AddInstance", request, response); err != nil {
		return nil, err
	}
	return line{
		"cloud_id":      get(response, "cloud_id"),
		"shoes_type":    get(response, "shoes_type"),
		"ip_address":    get(response, "ip_address"),
		"resource_type": get(response, "resource_type"),
	}, nil
}

func remove(ctx context.Context, connection *grpc.ClientConn, id string) (line, error) {
	request, response := newMessage("DeleteInstanceRequest"), newMessage("DeleteInstanceResponse")
	set(request, "cloud_id", id)
	return line{}, connection.Invoke(ctx, "/whywaita.myshoes.Shoes/DeleteInstance", request, response)
}
